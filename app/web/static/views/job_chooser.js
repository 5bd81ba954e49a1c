/** Choosing the trainings to compare: those of the data set of the first one. */

import { html } from "htm/preact";
import { useState } from "preact/hooks";

import { get, getItems } from "../api.js";
import { ago, percent } from "../format.js";
import { namesOf } from "../names.js";
import { ProblemBlock, useResource } from "../resource.js";
import { setQuery } from "../router.js";

const MOST = 8;

export function JobChooser({ chosen }) {
  const [first] = chosen;
  const { data, problem } = useResource(async () => {
    const dataset = first ? (await get(`/jobs/${first}`)).dataset_id : null;
    const { items } = await getItems(`/jobs?type=train&status=succeeded${dataset ? `&dataset_id=${dataset}` : ""}`, 200);
    return { jobs: items, names: await namesOf(items) };
  }, [first]);
  const [text, setText] = useState("");
  const fits = (job) => data.names.title(job).toLowerCase().includes(text.trim().toLowerCase());
  const toggle = (id) => setQuery({ job: chosen.includes(id) ? chosen.filter((other) => other !== id) : [...chosen, id] });
  return html`<${ProblemBlock} problem=${problem} />
    <details class="more" open=${chosen.length < 2}><summary>Trainings to compare</summary>
      ${data?.jobs.length > MOST && html`<input type="search" class="chooser-find" aria-label="Find a training" placeholder="Find a training" value=${text} onInput=${(event) => setText(event.target.value)} />`}
      ${data && html`<ul class="rows chooser" aria-label="Trainings">${data.jobs.filter(fits).map((job) => html`<li class="row" key=${job.id}><label class="check">
        <input type="checkbox" checked=${chosen.includes(job.id)} disabled=${!chosen.includes(job.id) && chosen.length >= MOST} onChange=${() => toggle(job.id)} />
        <span><strong>${data.names.title(job)}</strong> <span class="quiet">${[job.name && data.names.work(job), job.network, `labels version ${job.label_version}`, job.metrics?.test_accuracy && percent(job.metrics.test_accuracy.last), ago(job.created_at)].filter(Boolean).join(" · ")}</span></span></label></li>`)}
        ${!data.jobs.length && html`<li class="empty">Nothing has been trained yet.</li>`}</ul>`}
    </details>`;
}
