"""Look up and delete models, and point aliases at them. A published model never changes."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import delete, exists, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.db.clock import now
from app.db.tables import ACTIVE, Alias, AliasChange, Job, Model
from app.errors import AliasNotFound, InUse, ModelNotFound, NotReady
from app.models import following

DEFAULT = "default"  # follows what is published until it is set (`following`)


class ModelAndAlias(NamedTuple):
    """A model, and the alias by which it was looked up, if any."""

    model: Model
    alias: str | None


def get(session: Session, model_id: uuid.UUID) -> Model:
    """The model with this id; ModelNotFound."""
    model = session.get(Model, model_id)
    if model is None:
        raise no_model()
    return model


def no_model() -> ModelNotFound:
    """The problem with the id of no model."""
    return ModelNotFound("There is no model with this id.")


def lock(session: Session, model_id: uuid.UUID) -> bool:
    """Whether there is a model with this id, which nobody deletes before this transaction ends then."""
    statement = select(Model.id).where(Model.id == model_id).with_for_update(read=True, key_share=True)
    return session.scalar(statement) is not None


def resolve(session: Session, name: str) -> ModelAndAlias:
    """The model that a name stands for.

    Args:
        name: Id of a model, id of the job that trained it, or an alias.

    Raises:
        ModelNotFound, AliasNotFound: There is none of this name.
        NotReady: It is the id of a job that has no model.
    """
    try:
        model_id = uuid.UUID(name)
    except ValueError:
        return ModelAndAlias(resolve_alias(session, name), name)
    model = session.get(Model, model_id) or session.scalar(select(Model).where(Model.job_id == model_id))
    if model is not None:
        return ModelAndAlias(model, None)
    state = session.scalar(select(Job.state).where(Job.id == model_id))
    if state is not None:
        raise NotReady(f"This is a job without a model: it is {state}.")
    raise no_model()


def resolve_alias(session: Session, alias: str) -> Model:
    """The model that an alias points at; AliasNotFound, or ModelNotFound for `default` while there is no model."""
    model = session.scalar(select(Model).join(Alias, Alias.model_id == Model.id).where(Alias.name == alias))
    if model is None and alias == DEFAULT:
        model = following.present_model(session)
        if model is None:
            raise ModelNotFound("There is no model yet: train one with POST /jobs.")
    if model is None:
        raise AliasNotFound("There is no alias of this name.")
    return model


def aliases_of(session: Session, models: Sequence[Model]) -> dict[uuid.UUID, list[str]]:
    """The aliases of each model, by its id, `default` included."""
    names: dict[uuid.UUID, list[str]] = {model.id: [] for model in models}
    rows = session.execute(select(Alias.name, Alias.model_id).order_by(Alias.name)).all()
    for name, model_id in rows:
        if model_id in names:
            names[model_id].append(name)
    if (
        all(name != DEFAULT for name, _ in rows)
        and (follows := following.present_model(session))
        and follows.id in names
    ):
        names[follows.id].insert(0, DEFAULT)
    return names


def remove(session: Session, model_id: uuid.UUID) -> Model:
    """Delete a model's row, and return what it was; the caller removes the files.

    Raises:
        ModelNotFound: There is no such model.
        InUse: An alias points at it, or a queued or running job scores with it.
    """
    model = session.scalar(select(Model).where(Model.id == model_id).with_for_update())
    if model is None:
        raise no_model()
    names = list(session.scalars(select(Alias.name).where(Alias.model_id == model_id)))
    if names:
        raise InUse(f"The alias {', '.join(names)} points at this model; move it first.")
    scoring = (Job.type == "predict", Job.state.in_(ACTIVE), Job.spec["model_id"].as_string() == str(model_id))
    if session.scalar(select(exists().where(*scoring))):
        raise InUse("A queued or running job scores a data set with this model; cancel or wait.")
    session.delete(model)
    return model


def get_alias(session: Session, name: str) -> Alias:
    """The row of an alias; AliasNotFound."""
    row = session.get(Alias, name)
    if row is None:
        raise AliasNotFound("There is no alias of this name.")
    return row


def pin(session: Session, name: str, model_id: uuid.UUID) -> tuple[Alias, bool]:
    """Point an alias at a model and record the change.

    Returns:
        The alias, and whether it is new.

    Raises:
        ModelNotFound: There is no model with this id.
    """
    if not lock(session, model_id):
        raise no_model()
    is_new = session.scalar(select(Alias.name).where(Alias.name == name)) is None
    # One statement: of two requests that make the same alias, the second one moves it.
    values = {"model_id": model_id, "updated_at": now()}
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    statement = insert(Alias).values(name=name, **values).on_conflict_do_update(index_elements=["name"], set_=values)
    session.execute(statement)
    session.add(AliasChange(alias=name, model_id=model_id))
    session.flush()
    row = get_alias(session, name)
    session.refresh(row)
    return row, is_new


def roll_back(session: Session, name: str) -> Alias:
    """Point an alias back at the last other model that still exists; AliasNotFound, NotReady where there is none."""
    current = get_alias(session, name)
    changes = select(AliasChange.model_id).where(AliasChange.alias == name).order_by(AliasChange.id.desc())
    for model_id in session.scalars(changes):
        if model_id is not None and model_id != current.model_id and session.get(Model, model_id) is not None:
            return pin(session, name, model_id)[0]
    raise NotReady("This alias has no earlier model to go back to.", code="nothing_to_roll_back")


def unpin(session: Session, name: str) -> None:
    """Delete an alias; `default` then follows what is published again. AliasNotFound."""
    if session.execute(delete(Alias).where(Alias.name == name)).rowcount == 0:  # type: ignore[attr-defined]
        raise AliasNotFound("There is no alias of this name.")
    session.add(AliasChange(alias=name, model_id=None))


def histories(session: Session, names: Sequence[str], limit: int = 50) -> dict[str, list[AliasChange]]:
    """The last `limit` changes of each alias, newest first, by its name."""
    place = func.row_number().over(partition_by=AliasChange.alias, order_by=AliasChange.id.desc())
    numbered = select(AliasChange.id, place.label("place")).where(AliasChange.alias.in_(names)).subquery()
    newest = select(AliasChange).join(numbered, numbered.c.id == AliasChange.id).where(numbered.c.place <= limit)
    changes: dict[str, list[AliasChange]] = {name: [] for name in names}
    for change in session.scalars(newest.order_by(AliasChange.id.desc())):
        changes[change.alias].append(change)
    return changes
