"""Receives weights: a safetensors file, streamed to disk, of which only the header is ever read here.

Names and shapes of its tensors must be those of the catalog's network; networks of timm are not in the catalog, and the
first job finds whether weights of them fit. A file that `python -m ml weights add` wrote says itself what it is; of
others the request says it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from app.catalog import Catalog, UnknownChoice
from app.datasets.uploads import UploadWriter
from app.db import audit
from app.db import session as db
from app.db.audit import Actor
from app.errors import Fault, InvalidRequest, UnsupportedMediaType, WeightsRejected, sentence
from app.http import bodies
from app.http.access import actor_of
from app.networks import service
from app.storage import Storage
from ml.formats import tensor_shapes, weights_folder
from ml.formats.tensor_shapes import UnfittingWeights
from ml.formats.weights_folder import Header, InvalidWeights, WeightsRecord

MEDIA_TYPE = "application/octet-stream"
FACTS = ("source", "licence", "mean", "std", "image_size", "resize")
DEFAULTS = {"source": "uploaded", "licence": "unknown"}
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of batch normalisation: no parameters


async def receive(request: Request, name: str, facts: dict[str, Any], digest: str | None) -> tuple[WeightsRecord, bool]:
    """Receive the body and install it.

    Args:
        request: Its body is the file.
        name: The name of the weights: a network, with a tag if wanted.
        facts: Fields of the record that the request gives; None for the others.
        digest: The SHA-256 in hexadecimal that the file must have, if the client says so.

    Returns:
        The record, and whether there were no weights of this name before.

    Raises:
        InvalidRequest, WeightsRejected, InUse, UnsupportedMediaType, TooLarge, InsufficientStorage.
    """
    state = request.app.state
    check_network(state.catalog, name)
    await run_in_threadpool(_check_unused, state.engine, name)
    if bodies.media_type(request) != MEDIA_TYPE:
        raise UnsupportedMediaType(f"Send the safetensors file itself as {MEDIA_TYPE}.")
    bodies.allow(request.scope, state.settings.weights_bytes)
    files: Storage = state.storage
    async with state.upload_capacity.hold(request, while_body_arrives=True):
        await run_in_threadpool(files.require, state.settings.min_free_bytes)
        temporary = files.new_weights()
        try:
            writer = UploadWriter(temporary, files, state.settings.min_free_bytes)
            try:
                async for chunk in request.stream():
                    await writer.write(chunk)
                sha256 = await writer.finish()
            finally:
                writer.close()
            if digest is not None and digest.lower() != sha256:
                detail = f"The body has the SHA-256 {sha256}."
                raise InvalidRequest(detail, errors=[Fault("/query/digest", "digest", detail)])
            record = await run_in_threadpool(_read_record, state.catalog, temporary, name, facts, sha256)
            return record, await run_in_threadpool(_install, state.engine, files, temporary, record, actor_of(request))
        finally:
            temporary.unlink(missing_ok=True)


def check_network(catalog: Catalog, name: str) -> None:
    """Raise InvalidRequest for a name that is none, or whose network neither the catalog nor timm can have."""
    try:
        network = weights_folder.check_name(name).partition(".")[0]
    except InvalidWeights as error:
        raise InvalidRequest(str(error), errors=[Fault("/path/name", "weights_name", str(error))]) from None
    try:
        if not catalog.may_have_network(network):
            catalog.check_network(network)
    except UnknownChoice as error:
        raise InvalidRequest(str(error), errors=[Fault("/path/name", "unknown_network", str(error))]) from None


def _check_unused(engine: Any, name: str) -> None:
    with db.transaction(engine, read_only=True) as session:
        service.check_unused(session, name)


def _read_record(catalog: Catalog, file: Path, name: str, facts: dict[str, Any], sha256: str) -> WeightsRecord:
    try:
        header = weights_folder.read_header(file)
    except InvalidWeights as error:
        raise WeightsRejected(sentence(str(error))) from None
    return _record(catalog, header, file, name, facts, sha256)


def _install(engine: Any, files: Storage, file: Path, record: WeightsRecord, by: Actor) -> bool:
    """Install the file; whether there were no weights of its name before."""
    is_new = files.weights_record(record.name) is None
    with db.transaction(engine) as session:
        service.check_unused(session, record.name)  # again: receiving the file took its time
        audit.record(
            session,
            by,
            "weights.install",
            f"/weights/{record.name}",
            digest=f"sha256:{record.digest}",
            size=record.size,
        )
        session.flush()  # whatever the database refuses, it refuses before the file is there
        files.install_weights(file, record)
    return is_new


def _record(
    catalog: Catalog, header: Header, file: Path, name: str, facts: dict[str, Any], sha256: str
) -> WeightsRecord:
    """The record of a file: what the request says, then what the file says itself."""
    known = DEFAULTS | _own_facts(header) | {field: value for field, value in facts.items() if value is not None}
    if missing := [field for field in FACTS if field not in known]:
        faults = [Fault(f"/query/{field}", "missing", "The file does not say it itself.") for field in missing]
        raise InvalidRequest(f"Say the {' and '.join(missing)} of the images it was trained with.", errors=faults)
    network = name.partition(".")[0]
    entry = catalog.networks.get(network)
    if entry is not None:
        _check_shapes(catalog, network, header)
    values = {field: known[field] for field in FACTS} | {"name": name, "network": network, "digest": sha256}
    values |= {"parameters": entry["parameters"] if entry else _count_parameters(header), "size": file.stat().st_size}
    try:
        return WeightsRecord.from_json(values)
    except InvalidWeights as error:
        raise InvalidRequest(str(error), errors=[Fault("/query", "weights_record", str(error))]) from None


def _check_shapes(catalog: Catalog, network: str, header: Header) -> None:
    """Raise WeightsRejected for a file that lacks a tensor of the network, or has it in another shape."""
    required = tensor_shapes.unpack(catalog.tensor_shapes, network)
    try:
        tensor_shapes.match(required, {name: tensor.shape for name, tensor in header.tensors.items()})
    except UnfittingWeights as error:
        raise WeightsRejected(f"The weights do not fit {network}: {error}.") from None


def _count_parameters(header: Header) -> int:
    tensors = ((name, info) for name, info in header.tensors.items() if not name.endswith(STATISTICS))
    return sum(math.prod(info.shape) for _, info in tensors)


def _own_facts(header: Header) -> dict[str, Any]:
    """What the file says of itself, as far as it is well-formed."""
    try:
        facts = json.loads(header.metadata.get(weights_folder.METADATA, "{}"))
    except (ValueError, RecursionError):
        return {}
    return {field: facts[field] for field in FACTS if field in facts} if isinstance(facts, dict) else {}
