/** Choosing the trainings to compare: those of the data set of the first one. */

import { html } from "htm/preact";

import { get, getItems } from "../api.js";
import { ago, percent } from "../format.js";
import { ProblemBlock, useResource } from "../resource.js";
import { setQuery } from "../router.js";

const MOST = 8;

export function JobChooser({ chosen }) {
  const [first] = chosen;
  const { data, problem } = useResource(async () => {
    const dataset = first ? (await get(`/jobs/${first}`)).dataset_id : null;
    return (await getItems(`/jobs?type=train&status=succeeded${dataset ? `&dataset_id=${dataset}` : ""}`, 200)).items;
  }, [first]);
  const toggle = (id) => setQuery({ job: chosen.includes(id) ? chosen.filter((other) => other !== id) : [...chosen, id] });
  return html`<${ProblemBlock} problem=${problem} />
    <details class="more" open=${chosen.length < 2}><summary>Trainings to compare</summary>
      ${data && html`<ul class="rows chooser" aria-label="Trainings">${data.map((job) => html`<li class="row" key=${job.id}><label class="check">
        <input type="checkbox" checked=${chosen.includes(job.id)} disabled=${!chosen.includes(job.id) && chosen.length >= MOST} onChange=${() => toggle(job.id)} />
        <span><strong>${job.name ?? job.method}</strong> <span class="quiet">${[job.network, `labels version ${job.label_version}`, job.metrics?.test_accuracy && percent(job.metrics.test_accuracy.last), ago(job.created_at)].filter(Boolean).join(" · ")}</span></span></label></li>`)}
        ${!data.length && html`<li class="empty">Nothing has been trained yet.</li>`}</ul>`}
    </details>`;
}
