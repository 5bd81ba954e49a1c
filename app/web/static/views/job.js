/** One job: what it is, how far it is, what came of it. */

import { html } from "htm/preact";
import { useEffect, useRef, useState } from "preact/hooks";

import { get } from "../api.js";
import { catalog } from "../catalog.js";
import { ENDED, jobPanel } from "../job.js";
import { jobTitle, methodName } from "../jobs.js";
import { show } from "../problems.js";
import { navigate } from "../router.js";
import { Comparison } from "./comparison.js";
import { View } from "./view.js";

const QUICK_MS = 2000;

export default function Job({ id }) {
  const [job, setJob] = useState(null);
  const [about, setAbout] = useState({ methods: null, dataset: null });
  const [place, problem] = [useRef(null), useRef(null)];

  useEffect(() => keepFresh(id, place.current, problem.current, setJob), [id]);
  useEffect(() => {
    if (!job?.dataset_id) return;
    Promise.all([catalog(), get(`/datasets/${job.dataset_id}`).catch(() => null)])
      .then(([methods, dataset]) => setAbout({ methods, dataset }), () => {}); // without them the names serve
  }, [job?.dataset_id]);

  const { methods, dataset } = about;
  const title = job ? jobTitle(job, methods, dataset?.name) : "Job";
  const facts = job && html`<span class="status" data-status=${job.status}>${job.status}</span>${" "}
    ${methodName(methods, job)}${job.dataset_id && html`${" on "}<a href=${`/ui/datasets/${job.dataset_id}`}>${dataset?.name ?? "its data set"}</a>`}`;
  const finished = job?.status === "succeeded" && job.type === "train";
  const compared = finished && job.retrain_of_id; // what the corrected labels gained
  const actions = finished && html`${job.metrics?.label_issues > 0 && html`<a class="button primary" href=${`/ui/review/${id}`}>Review labels</a>`}
    <a class="button" href=${`/ui/compare?job=${job.retrain_of_id ?? id}${job.retrain_of_id ? `&job=${id}` : ""}`}>Compare</a>
    ${job.model_id && html`<a class="button" href=${`/ui/models/${job.model_id}`}>Model</a>`}`;
  return html`<${View} title=${title} lead=${facts || " "} actions=${actions} class="job">
    <div ref=${problem}></div>
    ${compared && html`<${Comparison} jobs=${[job.retrain_of_id, job.id]} />`}
    <div class="panel" ref=${place}></div>
  <//>`;
}

/** Show the job and keep it fresh until it has ended; returns what stops that. */
function keepFresh(id, place, problem, changed) {
  let panel = null;
  let timer = 0;
  let stopped = false;

  async function load() {
    clearTimeout(timer);
    try {
      const job = await get(`/jobs/${id}`);
      if (stopped) return;
      changed(job);
      if (panel) panel.update(job);
      else place.replaceChildren((panel = jobPanel(job, load, () => navigate("/ui/jobs"))).element);
      show(problem, null);
      if (!ENDED.includes(job.status)) timer = setTimeout(load, QUICK_MS);
    } catch (error) {
      if (stopped) return;
      show(problem, error);
      if (!error.status || error.status >= 500) timer = setTimeout(load, QUICK_MS);
    }
  }
  load();
  return () => {
    stopped = true;
    clearTimeout(timer);
    panel?.close();
  };
}
