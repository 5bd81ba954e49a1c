/** One job: what it is, how far it is, what came of it. */

import { html } from "htm/preact";
import { useEffect, useRef, useState } from "preact/hooks";

import { get } from "../api.js";
import { ago, plural } from "../format.js";
import { ENDED, jobPanel } from "../job.js";
import { namesOf } from "../names.js";
import { show } from "../problems.js";
import { navigate } from "../router.js";
import { Compared, loadComparison } from "./comparison.js";
import { View } from "./view.js";

const QUICK_MS = 2000;
const LONGEST_MS = 3000; // that a panel is waited for

export default function Job({ id }) {
  const [{ job, names, comparison }, setShown] = useState({});
  const [place, results, problem] = [useRef(null), useRef(null), useRef(null)];

  useEffect(() => keepFresh(id, place.current, results.current, problem.current, setShown), [id]);

  const title = job ? names.title(job) : "Job";
  const facts = job && [job.name && names.method(job), job.network, job.epochs && plural(job.epochs, "epoch"), ago(job.created_at)].filter(Boolean).join(" · ");
  const lead = job && html`<span class="status" data-status=${job.status}>${job.status}</span>${" "}${facts}${job.dataset_id && html`${" · "}<a href=${`/ui/datasets/${job.dataset_id}`}>${names.dataset(job) ?? "its data set"}</a>`}`;
  const finished = job?.status === "succeeded" && job.type === "train";
  const actions = finished && html`${job.metrics?.label_issues > 0 && html`<a class="button primary" href=${`/ui/review/${id}`}>Review labels</a>`}
    <a class="button" href=${`/ui/compare?job=${job.retrain_of_id ?? id}${job.retrain_of_id ? `&job=${id}` : ""}`}>Compare</a>
    ${job.model_id && html`<a class="button" href=${`/ui/models/${job.model_id}`}>Model</a>`}`;
  return html`<${View} title=${title} lead=${lead || " "} actions=${actions || null} class="job">
    <div ref=${problem}></div>
    <div class="panel" ref=${place}></div>
    ${comparison && html`<${Compared} ...${comparison} />`}
    <div ref=${results}></div>
  <//>`;
}

/** {data} or {problem}: what the corrected labels gained, of a training that repeats another one. */
async function gainOf(job) {
  if (job.status !== "succeeded" || !job.retrain_of_id) return null;
  return loadComparison([job.retrain_of_id, job.id]).then((data) => ({ data }), (problem) => ({ problem }));
}

/** Show the job and keep it fresh until it has ended; returns what stops that. Nothing is shown that would move at once. */
function keepFresh(id, place, results, problem, changed) {
  let panel = null;
  let names = null;
  let comparison = null;
  let timer = 0;
  let stopped = false;

  async function load() {
    clearTimeout(timer);
    try {
      const job = await get(`/jobs/${id}`);
      names ??= await namesOf([job]);
      comparison ??= await gainOf(job);
      if (stopped) return;
      changed({ job, names, comparison });
      show(problem, null);
      if (panel) panel.update(job);
      else await open(job);
      if (!ENDED.includes(job.status)) timer = setTimeout(load, QUICK_MS);
    } catch (error) {
      if (stopped) return;
      show(problem, error);
      if (!error.status || error.status >= 500) timer = setTimeout(load, QUICK_MS);
    }
  }
  async function open(job) {
    panel = jobPanel(job, load, () => navigate("/ui/jobs"));
    await Promise.race([panel.ready, new Promise((resolve) => setTimeout(resolve, LONGEST_MS))]);
    place.replaceChildren(panel.element);
    results.replaceChildren(panel.outcome);
  }
  load();
  return () => {
    stopped = true;
    clearTimeout(timer);
    panel?.close();
  };
}
