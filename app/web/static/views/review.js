/** The flags of a job reviewed one by one, by keyboard, mouse or touch. Every decision is kept in the draft on the server at once. */

import { html } from "htm/preact";
import { useEffect, useMemo, useState } from "preact/hooks";

import { get } from "../api.js";
import { openDraft } from "../draft.js";
import { pagedItems } from "../paged.js";
import { ProblemBlock, useResource } from "../resource.js";
import { address } from "../router.js";
import { Reviewer } from "./reviewer.js";
import { View } from "./view.js";

const FILTERS = ["label", "predicted", "q"];

export default function Review({ id }) {
  const { data, problem } = useResource(async () => {
    const job = await get(`/jobs/${id}`);
    const [dataset, ranking] = await Promise.all([get(`/datasets/${job.dataset_id}`), get(`/jobs/${id}/label-issues?limit=1`)]);
    const draft = openDraft(dataset.id);
    await draft.load();
    return { job, dataset, ranking, draft };
  }, [id]);
  useEffect(() => data?.draft.close, [data]);
  const title = data ? `Review ${data.dataset.name}` : "Review";
  return html`<${View} wide title=${title} class="review">
    <${ProblemBlock} problem=${problem} />
    ${data && html`<${Flags} ...${data} />`}
  <//>`;
}

function Flags({ job, dataset, ranking, draft }) {
  const { query } = address.value;
  const chosen = FILTERS.flatMap((name) => (query.get(name) ? [[name, query.get(name)]] : []));
  const request = new URLSearchParams([["job", job.id], ["is_label_issue", "true"], ["order_by", "score"], ["split", "train"], ...chosen]);
  const path = `/datasets/${dataset.id}/images?${request}`;
  const pages = useMemo(() => pagedItems(path), [path]);
  const [version, setVersion] = useState(dataset.label_version);
  useEffect(() => {
    pages.need(Infinity); // progress counts all of them
    return pages.close;
  }, [pages]);
  const total = pages.done.value || chosen.length ? pages.count.value : ranking.issues;
  if (pages.done.value && !pages.count.value) {
    return html`<p class="panel">No label is flagged${chosen.length ? " among these" : ""}.${" "}<a href=${`/ui/datasets/${dataset.id}`}>The data set</a></p>`;
  }
  return html`<${ProblemBlock} problem=${pages.problem.value} />
    ${pages.count.value > 0 && html`<${Reviewer} key=${path} ...${{ job, dataset, ranking, draft, pages, total, version, setVersion }} />`}`;
}
