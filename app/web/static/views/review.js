/** The flags of a job reviewed one by one, by keyboard, mouse or touch. Every decision is kept in the draft on the server at once. */

import { html } from "htm/preact";
import { useEffect, useMemo, useState } from "preact/hooks";

import { get } from "../api.js";
import { openDraft } from "../draft.js";
import { pagedItems } from "../paged.js";
import { ProblemBlock, useResource } from "../resource.js";
import { address } from "../router.js";
import { selection } from "../selection.js";
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
  const name = query.get("selection");
  const indices = useMemo(() => (name ? selection(name) ?? [] : undefined), [name]); // pictures that were chosen elsewhere
  const which = indices ? [] : [["is_label_issue", "true"], ...chosen];
  const request = new URLSearchParams([["job", job.id], ["order_by", "score"], ["split", "train"], ...which]);
  const path = `/datasets/${dataset.id}/images?${request}`;
  const pages = useMemo(() => pagedItems(path, { indices }), [path, indices]);
  const [version, setVersion] = useState(dataset.label_version);
  useEffect(() => {
    pages.need(Infinity); // progress counts all of them
    return pages.close;
  }, [pages]);
  const total = pages.done.value || chosen.length ? pages.count.value : indices ? indices.length : ranking.issues;
  if (pages.done.value && !pages.count.value) {
    const nothing = indices ? "No chosen picture has a label that was judged: they are test pictures, or were chosen in another tab." : `No label is flagged${chosen.length ? " among these" : ""}.`;
    return html`<p class="panel">${nothing}${" "}<a href=${`/ui/datasets/${dataset.id}`}>The data set</a></p>`;
  }
  return html`<${ProblemBlock} problem=${pages.problem.value} />
    ${pages.count.value > 0 && html`<${Reviewer} key=${`${path} ${name}`} ...${{ job, dataset, ranking, draft, pages, total, version, setVersion }} />`}`;
}
