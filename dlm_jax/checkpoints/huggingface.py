"""Hugging Face folders (`config.json`, safetensors) to and from our parameters, without torch."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

# Importing it registers bfloat16 with numpy, which is how safetensors asks for the dtype.
import ml_dtypes  # noqa: F401
import numpy as np
from safetensors import SafetensorError, safe_open

from dlm_jax.checkpoints.atomic_folder import atomic_folder
from dlm_jax.checkpoints.hf_config import config_document, read_config
from dlm_jax.checkpoints.hf_mapping import FAMILIES, Row, canonical, table
from dlm_jax.errors import UserError, nearest
from dlm_jax.models.config import EncoderConfig
from dlm_jax.models.encoder import Parameters, abstract_parameters, from_parameters

if TYPE_CHECKING:
    from dlm_jax.data.vocabularies import Vocabulary

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_FLOATS = ("F32", "F16", "BF16")
_HEAD_STANDARD_DEVIATION = 0.02
# Of two large tables that are compared.
_ROWS_AT_A_TIME = 8192
_IGNORED_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")


@dataclasses.dataclass(frozen=True)
class ImportReport:
    """What an import did beyond copying.

    Attributes:
        initialised: paths of our parameters that the folder does not hold and that were drawn anew.
        ignored: names of the folder's tensors that the encoder has no use for.
    """

    initialised: tuple[str, ...]
    ignored: tuple[str, ...]

    def __str__(self) -> str:
        lines = []
        if self.initialised:
            lines.append(
                "no prediction head in the folder, initialised at random (train it before use): "
                + ", ".join(self.initialised)
            )
        if self.ignored:
            lines.append("not used: " + ", ".join(self.ignored))
        return "\n".join(lines) or "every tensor was used"


@dataclasses.dataclass(frozen=True)
class ForeignWeights:
    """An encoder in a Hugging Face folder whose weights have been checked, and not read yet.

    Attributes:
        folder: the folder.
        config: shape of the encoder.
        report: what reading it does beyond copying.
        seed: of the prediction head, where the folder has none.
    """

    folder: Path
    config: EncoderConfig
    report: ImportReport
    seed: int

    @classmethod
    def find(cls, path: str | Path, *, seed: int = 0) -> ForeignWeights:
        """Looks at the configuration, and at the name, shape and type of every tensor.

        Args:
            path: folder with `config.json` and `model.safetensors`, or
                `model.safetensors.index.json` with its shards, in float32, float16 or bfloat16.
            seed: of the prediction head, where the folder has none.

        Raises:
            UserError: when the folder is not a supported encoder, or its weights are incomplete,
                damaged, of another shape than the configuration says, or not in safetensors.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder.")
        config = read_config(folder / CONFIG)
        with contextlib.ExitStack() as stack:
            tensors = _Tensors(folder, stack)
            config = _check_tying(config, tensors)
            return cls(folder, config, _Reader(config, tensors, seed).check(), seed)

    def read(self, abstract: Any) -> Parameters:
        """Reads the weights onto devices; each host reads what its own devices hold.

        Args:
            abstract: the tree of `abstract_parameters` with a sharding in each leaf.

        Returns:
            The tree of float32 arrays.
        """
        with contextlib.ExitStack() as stack:
            reader = _Reader(self.config, _Tensors(self.folder, stack), self.seed)

            def place(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                # Replicas of a part are asked for one after the other.
                known: dict[str, np.ndarray] = {}

                def part(index: tuple[slice, ...] | None) -> np.ndarray:
                    assert index is not None
                    if repr(index) not in known:
                        known.clear()
                        known[repr(index)] = reader.part(name, index)
                    return known[repr(index)]

                return jax.make_array_from_callback(leaf.shape, leaf.sharding, part)

            return jax.tree_util.tree_map_with_path(place, abstract)

    def read_here(self) -> Parameters:
        """Reads the weights as float32 numpy arrays."""
        with contextlib.ExitStack() as stack:
            reader = _Reader(self.config, _Tensors(self.folder, stack), self.seed)
            return jax.tree_util.tree_map_with_path(
                lambda path, leaf: reader.part(
                    jax.tree_util.keystr(path, simple=True, separator="/"),
                    tuple(slice(0, size) for size in leaf.shape),
                ),
                abstract_parameters(self.config),
            )


def import_folder(
    path: str | Path, *, seed: int = 0
) -> tuple[EncoderConfig, Parameters, ImportReport]:
    """Reads an encoder whole, one tensor at a time; arguments and errors as `ForeignWeights.find`.

    Returns:
        The configuration, the parameter tree as float32 numpy arrays, and what was done besides.
    """
    found = ForeignWeights.find(path, seed=seed)
    return found.config, found.read_here(), found.report


class _Tensors:
    """The tensors of a folder by today's names, each read from its file when asked for."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.place = folder
        self._files: dict[str, Any] = {}
        for file in _weight_files(folder):
            handle = stack.enter_context(_open(file))
            self._files |= {canonical(name): (handle, name) for name in handle.offset_keys()}

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def stored_name(self, name: str) -> str:
        """The name in the file, which may be an old one."""
        return self._files[name][1]

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Looks at the header of a tensor.

        Raises:
            UserError: it is missing, or of another shape or type than wanted.
        """
        if name not in self._files:
            raise UserError(
                f"{self.place} has no tensor {name!r}, which {CONFIG} calls for"
                f"{nearest(name, self._files)}."
            )
        handle, stored = self._files[name]
        part = handle.get_slice(stored)
        found = tuple(part.get_shape())
        if found != shape:
            raise UserError(
                f"{self.place}: tensor {stored!r} has shape {list(found)}, but {CONFIG} calls for "
                f"{list(shape)}."
            )
        if part.get_dtype() not in _FLOATS:
            raise UserError(
                f"{self.place}: tensor {stored!r} is of type {part.get_dtype()}, which is none of "
                f"{', '.join(_FLOATS)}."
            )

    def read(self, name: str, spans: tuple[slice, ...]) -> np.ndarray:
        """Reads a part of a tensor in the dtype it is stored in, and no other part of it."""
        handle, stored = self._files[name]
        return handle.get_slice(stored)[spans]


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if not index.exists():
        pickles = sorted(folder.glob("*.bin"))
        if pickles:
            raise UserError(
                f"{folder} holds {pickles[0].name} but no safetensors: convert it where torch is "
                "installed with transformers' "
                "AutoModelForMaskedLM.from_pretrained(folder).save_pretrained(new_folder)."
            )
        raise UserError(f"{folder} has neither {WEIGHTS} nor {INDEX}.")
    try:
        names = {Path(name) for name in json.loads(index.read_bytes())["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UserError(f"{index} is not an index of safetensors shards: {error!r}.") from error
    for name in names:
        if name.name != str(name) or not (folder / name).is_file():
            raise UserError(f"{index} names the shard '{name}', which is not in the folder.")
    return sorted(folder / name for name in names)


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="np")
    except (SafetensorError, OSError) as error:
        if _starts_with(file, b"version https://git-lfs"):
            raise UserError(f"{file} is a Git LFS pointer: run `git lfs pull`.") from error
        raise UserError(f"{file} is truncated or is not a safetensors file: {error}.") from error


def _starts_with(file: Path, prefix: bytes) -> bool:
    try:
        with file.open("rb") as stream:
            return stream.read(len(prefix)) == prefix
    except OSError:
        return False


def _prefix(config: EncoderConfig, tensors: _Tensors) -> str:
    """The encoder's prefix in this folder: none where the encoder was saved without a head."""
    bare = any(name.startswith(("embeddings.", "encoder.")) for name in tensors)
    return "" if bare else FAMILIES[config.family].prefix


def _check_tying(config: EncoderConfig, tensors: _Tensors) -> EncoderConfig:
    """Unties an encoder whose folder holds two different tables in spite of its configuration."""
    decoder = f"{FAMILIES[config.family].head}decoder.weight"
    embeddings = f"{_prefix(config, tensors)}embeddings.word_embeddings.weight"
    if config.tie_embeddings and decoder in tensors and embeddings in tensors:
        for name in (decoder, embeddings):
            tensors.check(name, (config.vocab_size, config.embed_dim))
        for begin in range(0, config.vocab_size, _ROWS_AT_A_TIME):
            rows = (slice(begin, min(begin + _ROWS_AT_A_TIME, config.vocab_size)),)
            if not np.array_equal(tensors.read(decoder, rows), tensors.read(embeddings, rows)):
                return dataclasses.replace(config, tie_embeddings=False)
    return config


def _leaf(parameters: Parameters, path: str) -> Any:
    node: Any = parameters
    for part in path.split("/"):
        node = node[part]
    return node


def _layers(config: EncoderConfig, row: Row) -> Iterator[int | None]:
    yield from range(config.num_layers) if row.stacked else (None,)


class _Reader:
    """Reads any part of any parameter out of a folder's tensors."""

    def __init__(self, config: EncoderConfig, tensors: _Tensors, seed: int) -> None:
        self._config, self._tensors = config, tensors
        self._prefix = _prefix(config, tensors)
        self._abstract = abstract_parameters(config)
        head = FAMILIES[config.family].head
        headless = not any(name.startswith(head) for name in tensors)
        generator = np.random.default_rng(seed)
        self._rows: dict[str, list[Row]] = {}
        self._drawn: dict[str, np.ndarray] = {}
        for row in table(config):
            if row.in_head and headless:
                shape = _leaf(self._abstract, row.parameter).shape
                self._drawn[row.parameter] = _initial(row.parameter, shape, generator)
            else:
                self._rows.setdefault(row.parameter, []).append(row)

    def check(self) -> ImportReport:
        """Looks at the header of every tensor; reads none.

        Raises:
            UserError: a tensor is missing, of another shape or type, or has no place.
        """
        used = set()
        for row in (row for rows in self._rows.values() for row in rows):
            shape = row.tensor_shape(self._slot_shape(row))
            for layer in _layers(self._config, row):
                name = self._name(row, layer)
                self._tensors.check(name, shape)
                used.add(name)
        unused = _unused(self._config, self._prefix, self._tensors, used)
        return ImportReport(tuple(self._drawn), unused)

    def part(self, parameter: str, index: tuple[slice, ...]) -> np.ndarray:
        """float32 values of a parameter at an index, which has a slice for each axis."""
        if parameter in self._drawn:
            return self._drawn[parameter][index]
        shape = _leaf(self._abstract, parameter).shape
        ranges = [range(*along.indices(size)) for along, size in zip(index, shape)]
        result = np.empty([len(along) for along in ranges], np.float32)
        for row in self._rows[parameter]:
            layers: Sequence[int | None] = ranges[0] if row.stacked else (None,)
            inner, target = ranges[1:] if row.stacked else ranges, result
            if row.part is not None:
                if row.part not in inner[-3]:
                    continue
                target = result[..., inner[-3].index(row.part), :, :]
                inner = [*inner[:-3], *inner[-2:]]
            slot_shape = self._slot_shape(row)
            spans = row.spans(slot_shape, inner)
            for number, layer in enumerate(layers):
                tensor = self._tensors.read(self._name(row, layer), spans)
                slot = target if layer is None else target[number]
                slot[...] = row.to_part(tensor, slot_shape, inner)
        return result

    def _name(self, row: Row, layer: int | None) -> str:
        return _stored_under(row, row.name(self._prefix, layer), self._tensors)

    def _slot_shape(self, row: Row) -> tuple[int, ...]:
        shape = _leaf(self._abstract, row.parameter).shape
        whole = np.broadcast_to(np.float32(0), shape[1:] if row.stacked else shape)
        return row.slot(whole).shape


def _stored_under(row: Row, name: str, tensors: _Tensors) -> str:
    """Which of the names of a shared tensor this folder kept."""
    if row.preferred is not None and row.preferred in tensors:
        return row.preferred
    if row.fallback is not None and row.fallback in tensors and name not in tensors:
        return row.fallback
    return name


def _initial(parameter: str, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    if parameter.endswith("/kernel"):
        return generator.normal(0.0, _HEAD_STANDARD_DEVIATION, shape).astype(np.float32)
    return np.full(shape, 1.0 if parameter.endswith("/scale") else 0.0, np.float32)


def _unused(
    config: EncoderConfig, prefix: str, tensors: _Tensors, used: set[str]
) -> tuple[str, ...]:
    """Names the tensors that were not read, none of which may belong to the encoder or its head."""
    family = FAMILIES[config.family]
    harmless = {f"{family.head}{name}" for name in ("bias", "decoder.weight", "decoder.bias")}
    harmless |= {prefix + name for name in _IGNORED_BUFFERS}
    parts = (f"{prefix}embeddings.", f"{prefix}encoder.", family.head)
    unused = [name for name in tensors if name not in used]
    for name in unused:
        if name.startswith(parts) and name not in harmless:
            raise UserError(
                f"{tensors.place}: tensor {tensors.stored_name(name)!r} has no place in a "
                f"{config.family} encoder of {config.num_layers} layers."
            )
    return tuple(sorted(tensors.stored_name(name) for name in unused))


def export_folder(
    config: EncoderConfig,
    parameters: Parameters,
    vocabulary: Vocabulary | None,
    path: str | Path,
) -> Path:
    """Writes an encoder as a Hugging Face folder, which appears whole or not at all.

    Tensors are written one at a time in float32, so that no second copy of the weights is held.

    Args:
        config: the encoder.
        parameters: its tree, of numpy or JAX arrays.
        vocabulary: saved beside the weights; None leaves it out.
        path: the folder to create; an existing one must be empty.

    Returns:
        `path`.

    Raises:
        UserError: when the folder holds something or cannot be written, or no Hugging Face class
            computes this encoder.
        ValueError: when the tree is not the one of the configuration.
    """
    folder = Path(path)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} already holds something: name a new folder to export to.")
    document = config_document(config, vocabulary)
    if vocabulary is not None and vocabulary.size > config.vocab_size:
        raise UserError(
            f"the vocabulary has {vocabulary.size} pieces, more than the {config.vocab_size} rows "
            "of the model's token table."
        )
    from_parameters(config, parameters)  # checks every name and shape
    if config.type_vocab_size == 0:
        # transformers always adds row 0 of a token-type table, so the export gets a row of zeros.
        config, parameters = _with_token_types(config, parameters)
        document["type_vocab_size"] = config.type_vocab_size
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(folder) as temporary:
            (temporary / CONFIG).write_text(
                json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8"
            )
            _write_weights(temporary / WEIGHTS, config, parameters)
            if vocabulary is not None:
                vocabulary.save(temporary)
                (temporary / "tokenizer_config.json").write_text(
                    json.dumps(_tokenizer_config(config, vocabulary), indent=2) + "\n",
                    encoding="utf-8",
                )
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}.") from error
    return folder


def _tokenizer_config(config: EncoderConfig, vocabulary: Vocabulary) -> dict[str, Any]:
    """What transformers cannot tell from the other files."""
    document: dict[str, Any] = {"model_max_length": config.max_length}
    if vocabulary.kind == "sentencepiece":
        # It would take the class from the kind of model, and multilingual BERTs differ from BERT.
        document["tokenizer_class"] = "XLMRobertaTokenizer"
    return document


def _with_token_types(
    config: EncoderConfig, parameters: Parameters
) -> tuple[EncoderConfig, Parameters]:
    row = {"embedding": np.zeros((1, config.embed_dim), np.float32)}
    embeddings = {**parameters["embeddings"], "token_type": row}
    return (
        dataclasses.replace(config, type_vocab_size=1),
        {**parameters, "embeddings": embeddings},
    )


def _write_weights(file: Path, config: EncoderConfig, parameters: Parameters) -> None:
    """Streams a safetensors file: 8 bytes of header length, the JSON header, then the tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, row, leaf, _ in _exported(config, parameters):
        whole = np.broadcast_to(np.float32(0), leaf.shape[1:] if row.stacked else leaf.shape)
        shape = row.tensor_shape(row.slot(whole).shape)
        start, end = end, end + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(encoded)) + encoded)
        for _, row, leaf, layer in _exported(config, parameters):
            array = np.asarray(leaf if layer is None else leaf[layer])
            tensor = row.to_tensor(row.slot(array))
            np.ascontiguousarray(tensor, dtype="<f4").tofile(stream)


def _exported(
    config: EncoderConfig, parameters: Parameters
) -> Iterator[tuple[str, Row, Any, int | None]]:
    """Yields (tensor name, row, whole parameter, layer) in the order of the file."""
    prefix = FAMILIES[config.family].prefix
    for row in table(config):
        leaf = _leaf(parameters, row.parameter)
        for layer in _layers(config, row):
            yield row.name(prefix, layer), row, leaf, layer
        if row.preferred and not config.tie_embeddings:
            yield row.preferred, row, leaf, None
