/** One job: what it is, how far it is, what came of it. */

import { html } from "htm/preact";
import { useEffect, useRef, useState } from "preact/hooks";

import { get } from "../api.js";
import { catalog } from "../catalog.js";
import { ENDED, jobPanel } from "../job.js";
import { jobTitle, methodName } from "../jobs.js";
import { show } from "../problems.js";
import { navigate } from "../router.js";
import { View } from "./view.js";

const QUICK_MS = 2000;

export default function Job({ id }) {
  const [job, setJob] = useState(null);
  const [about, setAbout] = useState({ methods: null, dataset: null });
  const [place, problem] = [useRef(null), useRef(null)];

  useEffect(() => follow(id, place.current, problem.current, setJob), [id]);
  useEffect(() => {
    if (!job?.dataset_id) return;
    Promise.all([catalog(), get(`/datasets/${job.dataset_id}`).catch(() => null)])
      .then(([methods, dataset]) => setAbout({ methods, dataset }), () => {}); // without them the names serve
  }, [job?.dataset_id]);

  const { methods, dataset } = about;
  const title = job ? jobTitle(job, methods, dataset?.name) : "Job";
  const facts = job && html`<span class="status" data-status=${job.status}>${job.status}</span>${" "}
    ${methodName(methods, job)}${job.dataset_id && html`${" on "}<a href=${`/ui/datasets/${job.dataset_id}`}>${dataset?.name ?? "its data set"}</a>`}`;
  return html`<${View} title=${title} lead=${facts || " "} class="job">
    <div ref=${problem}></div>
    <div class="panel" ref=${place}></div>
  <//>`;
}

/** Show the job and keep it fresh until it has ended; returns what stops that. */
function follow(id, place, problem, changed) {
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
