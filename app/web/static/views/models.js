/** All models with the method and data set that they come from, their figures, and the names that point at them. */

import { html } from "htm/preact";

import { getItems } from "../api.js";
import { ago, bytes, percent } from "../format.js";
import { namesOf } from "../names.js";
import { ProblemBlock, useResource } from "../resource.js";
import { View } from "./view.js";

export default function Models() {
  const { data, problem } = useResource(async () => {
    const { items } = await getItems("/models");
    return { models: items, names: await namesOf(items) };
  }, []);
  return html`<${View} title="Models" lead="Every training that succeeds publishes one. The alias default follows the newest whose figures are not worse, until it is pinned.">
    <${ProblemBlock} problem=${problem} />
    ${data && html`<div class="table-scroll" tabindex="0" role="group" aria-label="Table"><table><caption class="unseen">Models, newest first</caption>
      <thead><tr><th scope="col">Model</th><th scope="col">Method</th><th scope="col">Data set</th><th scope="col" class="number">Test accuracy</th><th scope="col" class="number">Size</th><th scope="col">Aliases</th></tr></thead>
      <tbody>${data.models.map((model) => html`<tr key=${model.id}>
        <th scope="row"><a href=${`/ui/models/${model.id}`}>${model.name ?? `${data.names.method(model)}, ${ago(model.created_at)}`}</a></th><td>${data.names.method(model)}, ${model.network}</td>
        <td>${data.names.dataset(model) ? html`<a href=${`/ui/datasets/${model.dataset_id}`}>${data.names.dataset(model)}</a>` : "deleted"}</td>
        <td class="number">${percent(model.metrics.test_accuracy?.last)}</td><td class="number">${bytes(model.size_bytes)}</td><td>${model.aliases.map((alias) => html`<span class="tag">${alias}</span> `)}</td></tr>`)}
        ${!data.models.length && html`<tr><td colspan="6" class="quiet">A model appears here when a job has succeeded.</td></tr>`}</tbody></table></div>`}
  <//>`;
}
