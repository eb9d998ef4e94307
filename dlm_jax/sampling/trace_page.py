"""A trace as one HTML page that needs no network: a slider over the steps."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dlm_jax.sampling.trace import Trace, remask_counts, reveal_steps

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>@TITLE@</title>
<style>
:root { color-scheme: light dark; --line: #8886; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto;
  max-width: 60rem; padding: 0 1rem 3rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
.controls { position: sticky; top: 0; z-index: 1; background: Canvas; padding: .6rem 0;
  border-bottom: 1px solid var(--line); display: flex; gap: .8rem; align-items: center; }
.controls input { flex: 1; }
.controls output { min-width: 7.5em; font-variant-numeric: tabular-nums; }
.canvas { display: flex; flex-wrap: wrap; gap: 4px 3px; }
.token { padding: 1px 5px; border-radius: 4px; border: 2px solid transparent; white-space: pre;
  position: relative; color: #111; }
.given { color: inherit; border-color: var(--line); opacity: .75; }
.mask { color: inherit; border: 2px dashed var(--line); min-width: 1.2em; text-align: center; }
.new { border-color: #0a7d32; } .lost { border: 2px solid #d1242f; }
sup { font-size: .65em; color: #d1242f; font-weight: 700; margin-left: 2px; line-height: 0; }
.canvas .token:not(.mask) sup { color: #8f1119; }
.legend { font-size: .85rem; display: flex; flex-wrap: wrap; gap: .4rem 1.2rem; margin: .8rem 0; }
.bar { display: inline-block; width: 9rem; height: .8em; border-radius: 3px;
  vertical-align: middle; }
.count { font-size: .85rem; opacity: .8; font-weight: 400; }
</style>
</head>
<body>
<h1>@TITLE@</h1>
<div class="controls">
<button type="button" id="play">Play</button>
<input type="range" id="step" min="0" value="0" step="1" aria-label="Step">
<output id="at" for="step"></output>
</div>
<div class="legend">
<span>written at step 1 <span class="bar" id="bar"></span> last step</span>
<span><span class="token given">given</span></span>
<span><span class="token mask">&nbsp;</span> masked</span>
<span><span class="token mask lost">&nbsp;</span> masked again in this step</span>
<span><span class="token mask">&nbsp;<sup>2</sup></span> times masked again</span>
</div>
<main id="rows"></main>
<script type="application/json" id="trace">@DATA@</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("trace").textContent);
const slider = document.getElementById("step"), at = document.getElementById("at");
const hue = step => Math.round(250 - 200 * (step - 1) / Math.max(1, data.steps - 1));
const colour = step => `hsl(${hue(step)} 75% 78%)`;
document.getElementById("bar").style.background = "linear-gradient(to right," +
  Array.from({length: 9}, (_, i) => colour(1 + (data.steps - 1) * i / 8)).join(",") + ")";
slider.max = data.steps;
const views = data.rows.map(row => {
  const heading = document.createElement("h2"), count = document.createElement("span");
  const canvas = document.createElement("div");
  heading.textContent = row.title + " ";
  count.className = "count";
  heading.append(count);
  canvas.className = "canvas";
  document.getElementById("rows").append(heading, canvas);
  return {row, count, canvas};
});
function states(row, step) {
  const cells = row.start.map(piece => ({piece, since: 0, lost: 0, fresh: false, gone: false}));
  row.editable.forEach(place => { cells[place].piece = null; cells[place].open = true; });
  for (let s = 1; s <= step; s++) {
    for (const cell of cells) { cell.fresh = false; cell.gone = false; }
    for (const [place, piece, score] of row.written[s - 1])
      Object.assign(cells[place], {piece, score, since: s, fresh: true});
    for (const place of row.remasked[s - 1]) {
      Object.assign(cells[place], {piece: null, since: 0, gone: true});
      cells[place].lost++;
    }
  }
  return cells;
}
function show() {
  const step = Number(slider.value);
  at.textContent = `step ${step} of ${data.steps}`;
  for (const {row, count, canvas} of views) {
    const cells = states(row, step);
    const left = cells.filter(cell => cell.open && cell.piece === null).length;
    count.textContent = `${left} of ${row.editable.length} masked`;
    canvas.replaceChildren(...cells.map(cell => {
      const token = document.createElement("span");
      token.className = "token";
      if (!cell.open) { token.classList.add("given"); token.title = "given"; }
      if (cell.open && cell.piece === null) {
        token.classList.add("mask");
        token.title = "masked";
        if (cell.gone) token.classList.add("lost");
      } else if (cell.open) {
        token.style.background = colour(cell.since);
        if (cell.fresh) token.classList.add("new");
        token.title = `written at step ${cell.since}, log-probability ${cell.score}`;
      }
      token.textContent = cell.piece === null ? "\\u00a0" : data.pieces[cell.piece] || "\\u00a0";
      if (cell.lost) {
        const mark = document.createElement("sup");
        mark.textContent = cell.lost;
        token.append(mark);
      }
      return token;
    }));
  }
}
let timer = null;
document.getElementById("play").addEventListener("click", event => {
  if (timer) { clearInterval(timer); timer = null; event.target.textContent = "Play"; return; }
  if (Number(slider.value) >= data.steps) slider.value = 0;
  event.target.textContent = "Stop";
  timer = setInterval(() => {
    slider.value = Number(slider.value) + 1;
    show();
    if (Number(slider.value) >= data.steps) document.getElementById("play").click();
  }, 350);
});
slider.addEventListener("input", show);
slider.value = data.steps;
show();
</script>
</body>
</html>
"""


def trace_html(
    trace: Trace,
    pieces: Sequence[str] | Callable[[int], str],
    *,
    rows: Sequence[int] | None = None,
    row_titles: Sequence[str] | None = None,
    title: str = "Reverse process",
) -> str:
    """Renders rows of a trace.

    Args:
      trace: of a `Generation`.
      pieces: text of a token id: a list indexed by id, or a function such as `Vocabulary.piece`.
      rows: which rows to show; by default all of them.
      row_titles: a heading for each shown row; by default its number.
      title: of the page.

    Returns:
      A complete HTML document. Colours tell the step at which a token was written, red frames and
      numbers where a written token was masked again.

    Raises:
      ValueError: another number of titles than of rows.
    """
    shown = range(np.asarray(trace.start).shape[0]) if rows is None else rows
    titles = [f"Row {row}" for row in shown] if row_titles is None else row_titles
    if len(titles) != len(shown):
        raise ValueError(f"{len(titles)} titles for {len(shown)} rows.")
    used: dict[int, int] = {}
    payload = {
        "steps": int(trace.steps_taken),
        "rows": [_row(trace, row, name, used) for row, name in zip(shown, titles, strict=True)],
    }
    text = pieces if callable(pieces) else pieces.__getitem__
    payload["pieces"] = [text(token) for token in used]
    # A "<" inside a script element could end it.
    data = json.dumps(payload, separators=(",", ":")).replace("<", "\\u003c")
    return _PAGE.replace("@TITLE@", html.escape(title)).replace("@DATA@", data)


def _row(trace: Trace, row: int, title: str, used: dict[int, int]) -> dict[str, Any]:
    """The events of one row; tokens become indices into the table of `used` ids."""
    steps = int(trace.steps_taken)
    start, tokens = np.asarray(trace.start[row]), np.asarray(trace.tokens[:, row])
    scores = np.asarray(trace.scores[:, row])
    committed, remasked = np.asarray(trace.committed[:, row]), np.asarray(trace.remasked[:, row])
    occupied = np.flatnonzero(np.asarray(trace.segment_ids[row]))
    length = int(occupied[-1]) + 1 if occupied.size else 0

    def index(token: int) -> int:
        return used.setdefault(token, len(used))

    return {
        "title": title,
        "start": [index(int(token)) for token in start[:length]],
        "editable": np.flatnonzero(np.asarray(trace.editable[row])).tolist(),
        "written": [
            [
                [int(place), index(int(tokens[step, place])), round(float(scores[step, place]), 4)]
                for place in np.flatnonzero(committed[step])
            ]
            for step in range(steps)
        ],
        "remasked": [np.flatnonzero(remasked[step]).tolist() for step in range(steps)],
        "reveal_steps": reveal_steps(trace)[row, :length].tolist(),
        "remask_counts": remask_counts(trace)[row, :length].tolist(),
    }
