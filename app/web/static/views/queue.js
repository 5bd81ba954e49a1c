/** What runs and what waits: order, priority, why it waits, and cancelling it. */

import { html } from "htm/preact";
import { useEffect } from "preact/hooks";

import { getItems, patch, post } from "../api.js";
import { announce } from "../dom.js";
import { ago, duration, percent } from "../format.js";
import { namesOf } from "../names.js";
import { ProblemBlock, useAction, useResource } from "../resource.js";
import { View } from "./view.js";

const REFRESH_MS = 2000;
const PRIORITIES = ["high", "normal", "low"]; // the order in which they run

export default function Queue() {
  const { data, problem, reload } = useResource(async () => {
    const [running, queued] = await Promise.all(["running", "queued"].map(async (status) => (await getItems(`/jobs?status=${status}`)).items));
    const names = await namesOf([...running, ...queued]);
    return { names, running, queued: queued.reverse().sort((a, b) => PRIORITIES.indexOf(a.priority) - PRIORITIES.indexOf(b.priority)) };
  }, []);
  useEffect(() => {
    const timer = setInterval(() => document.hidden || reload(), REFRESH_MS);
    return () => clearInterval(timer);
  }, []);
  return html`<${View} title="Queue" lead="What runs, and what waits in the order in which it will be taken. A job that needs more devices than are free may be overtaken.">
    <${ProblemBlock} problem=${problem} />
    ${data && html`<${List} title="Running" none="Nothing runs." jobs=${data.running} names=${data.names} reload=${reload} />
      <${List} title="Waiting" none="Nothing waits." jobs=${data.queued} names=${data.names} reload=${reload} />`}
  <//>`;
}

function List({ title, none, jobs, names, reload }) {
  return html`<section aria-label=${title}><h2>${title}</h2>
    <ol class="rows queue">${jobs.map((job) => html`<${Entry} key=${job.id} job=${job} names=${names} reload=${reload} />`)}${!jobs.length && html`<li class="empty">${none}</li>`}</ol></section>`;
}

function Entry({ job, names, reload }) {
  const { busy, problem, run } = useAction();
  const name = names.title(job);
  const change = (priority) => run(async () => {
    await patch(`/jobs/${job.id}`, { priority });
    reload();
  });
  const cancel = () => run(async () => {
    await post(`/jobs/${job.id}/cancel`);
    announce(`${name} is cancelled`);
    reload();
  });
  const share = job.progress?.fraction;
  const waits = typeof job.waiting_for === "string" ? job.waiting_for : job.waiting_for?.detail;
  return html`<li class="row"><div class="row-head"><h3 class="row-name"><a href=${`/ui/jobs/${job.id}`}>${name}</a></h3><span class="status" data-status=${job.status}>${job.status}</span>
      <div class="row-actions">
        ${job.status === "queued" && html`<select aria-label=${`Priority of ${name}`} value=${job.priority} disabled=${busy} onChange=${(event) => change(event.target.value)}>
          ${PRIORITIES.map((entry) => html`<option value=${entry} selected=${entry === job.priority}>${entry}</option>`)}</select>`}
        <button type="button" class="small" disabled=${busy || job.status === "cancelling"} onClick=${cancel}>Cancel</button></div></div>
    <p class="quiet">${[job.name && names.work(job), job.network, `${job.resources?.gpus ?? 1} device${job.resources?.gpus > 1 ? "s" : ""}`, `${job.priority} priority`, share !== undefined && percent(share, 0), job.progress?.eta_seconds && `${duration(job.progress.eta_seconds)} left`, waits, ago(job.created_at)].filter(Boolean).join(" · ")}</p>
    <${ProblemBlock} problem=${problem} /></li>`;
}
