"""What can be trained here: the catalog's networks, and those whose pretrained weights are installed."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.catalog import TIMM, Catalog
from app.db.tables import ACTIVE, Job
from app.errors import Fault, InUse, InvalidRequest, WeightsNotFound
from app.storage import Storage
from ml.formats.weights_folder import WeightsRecord

TOO_SMALL = {64: 32, 224: 64}  # px that a network was seen to fail at, by the smallest of 32, 64 and 224 that it reads


def installed_weights(files: Storage) -> dict[str, WeightsRecord]:
    """The records of all installed weights by name, in the order of names."""
    return {record.name: record for record in files.installed_weights()}


def get_weights(files: Storage, name: str) -> WeightsRecord:
    """The record of installed weights; WeightsNotFound."""
    record = files.weights_record(name)
    if record is None:
        raise WeightsNotFound("No weights of this name are installed.")
    return record


def remove_weights(session: Session, files: Storage, name: str) -> None:
    """Delete installed weights; finished jobs and their models do not need them.

    Raises:
        WeightsNotFound: They are not installed.
        InUse: A queued or running job starts from them.
    """
    get_weights(files, name)
    check_unused(session, name)
    files.remove_weights(name)


def check_unused(session: Session, name: str) -> None:
    """Raise InUse where a queued or running job starts from the weights of this name."""
    active = (Job.type == "train", Job.state.in_(ACTIVE))
    uses_weights = (Job.spec["pretrained"].as_boolean(), Job.spec["network"].as_string() == name)
    jobs = session.scalar(select(func.count()).select_from(Job).where(*active, *uses_weights)) or 0
    if jobs:
        raise InUse(f"{jobs} queued or running job{'s' if jobs > 1 else ''} start from them; cancel or wait.")


def check_runnable(
    catalog: Catalog, installed: Mapping[str, WeightsRecord], network: str, *, pretrained: bool, image_size: int
) -> None:
    """Refuse a training that could only fail.

    Args:
        installed: Installed weights by name.
        network: Its network; the catalog's, or one with a tag or of timm, which are known by their weights.
        pretrained: Whether it starts from weights.
        image_size: Side of its images in pixels.

    Raises:
        InvalidRequest: Its weights are not installed, and the problem's `hint` is the command that installs them; or
            its images are too small for it.
    """
    smallest = catalog.networks.get(network.partition(".")[0], {}).get("min_image_size", 0)
    if image_size <= TOO_SMALL.get(smallest, 0):
        detail = f"{network} cannot read images of {image_size} px; it reads those of {smallest} px."
        raise InvalidRequest(f"/image_size: {detail}", errors=[Fault("/image_size", "too_small", detail)])
    if network in installed or (network in catalog.networks and not pretrained):
        return
    detail = f"No pretrained weights of {network} are installed."
    field = "/pretrained" if network in catalog.networks else "/network"
    problem = InvalidRequest(f"{field}: {detail}", errors=[Fault(field, "missing_weights", detail)])
    command = add_command(catalog, network)
    otherwise = ", or set pretrained to false" if network in catalog.networks else ""
    problem.members = {"hint": f"`{command}` installs them{otherwise}."}
    raise problem


def add_command(catalog: Catalog, network: str) -> str:
    """The command that installs weights of a network: published ones, or, where there are none, those of a file."""
    is_published = network.startswith(TIMM) or catalog.networks.get(network, {}).get("pretrained") is not None
    return f"python -m ml weights add {network if is_published else f'FILE --network {network}'}"
