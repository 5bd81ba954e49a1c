/** One model: where it comes from, its figures, the alias default with its history, how to call it, and deleting it. */

import { html } from "htm/preact";
import { useLayoutEffect, useRef } from "preact/hooks";

import { get, put, remove } from "../api.js";
import { announce } from "../dom.js";
import { ago, bytes, words } from "../format.js";
import { namesOf } from "../names.js";
import { figures } from "../outcome.js";
import { ProblemBlock, useAction, useResource } from "../resource.js";
import { navigate } from "../router.js";
import { Snippets } from "./snippets.js";
import { View } from "./view.js";

export default function Model({ id }) {
  const { data, problem, reload } = useResource(async () => {
    const model = await get(`/models/${id}`);
    const [alias, names] = await Promise.all([get("/aliases/default").catch(() => null), namesOf([model])]);
    return { model, alias, names };
  }, [id]);
  const { model, alias, names } = data ?? {};
  const title = model ? names.title(model) : "Model";
  const lead = model && html`${names.method(model)}, ${model.network}${names.dataset(model) && html`${" on "}<a href=${`/ui/datasets/${model.dataset_id}`}>${names.dataset(model)}</a>`} · ${bytes(model.size_bytes)} · ${ago(model.created_at)}
    ${model.job_id && html`${" · "}<a href=${`/ui/jobs/${model.job_id}`}>its training</a>`}`;
  return html`<${View} title=${title} lead=${lead || " "} actions=${model ? html`<a class="button primary" href=${`/ui/predict?model=${id}`}>Try it</a>` : null}>
    <${ProblemBlock} problem=${problem} />
    ${model && html`<${Figures} model=${model} /><${Aliases} model=${model} alias=${alias} changed=${reload} /><${Snippets} model=${id} /><${Deletion} model=${model} title=${title} />`}
  <//>`;
}

function Figures({ model }) {
  const place = useRef(null);
  useLayoutEffect(() => place.current.replaceChildren(...[figures(model)].filter(Boolean)), [model]);
  return html`<div class="panel"><div class="outcome" ref=${place}></div></div>`;
}

function Aliases({ model, alias, changed }) {
  const { busy, problem, run } = useAction();
  const move = (body, text) => () => run(async () => {
    await put("/aliases/default", body);
    announce(text);
    changed();
  });
  const release = () => run(async () => {
    await remove("/aliases/default");
    announce("default follows the newest model again");
    changed();
  });
  const here = alias?.model_id === model.id;
  return html`<section class="panel" aria-label="Alias default"><h2>default</h2>
    <p>${here ? "It points at this model" : "It points at another model"}${alias?.pinned ? ", and is pinned." : "."}${alias?.reason && !alias.pinned ? ` ${words(alias.reason)}.` : ""}</p>
    <div class="actions">
      <button type="button" disabled=${busy || (here && alias?.pinned)} onClick=${move({ model_id: model.id }, "default is pinned to this model")}>Pin default here</button>
      <button type="button" disabled=${busy || (alias?.history.length ?? 0) < 2} onClick=${move({ rollback: true }, "default points at the model before")}>Roll back</button>
      ${alias?.pinned && html`<button type="button" disabled=${busy} onClick=${release}>Let it follow again</button>`}</div>
    <${ProblemBlock} problem=${problem} />
    ${alias?.history.length > 0 && html`<ol class="history" aria-label="History of default">${alias.history.map((entry) => html`<li>${entry.model_id ? html`<a href=${`/ui/models/${entry.model_id}`}>${entry.model_id === model.id ? "this model" : entry.model_id}</a>` : "not pinned"} <span class="quiet small">${ago(entry.created_at)}</span></li>`)}</ol>`}
  </section>`;
}

function Deletion({ model, title }) {
  const { busy, problem, run } = useAction();
  const drop = () => window.confirm(`Delete the model “${title}”? That frees ${bytes(model.size_bytes)}.`) && run(async () => {
    await remove(`/models/${model.id}`);
    navigate("/ui/models");
  });
  return html`<div class="actions"><button type="button" disabled=${busy} onClick=${drop}>Delete, which frees ${bytes(model.size_bytes)}</button></div><${ProblemBlock} problem=${problem} />`;
}
