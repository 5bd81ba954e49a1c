/** All jobs, newest first. */

import { html } from "htm/preact";

import { jobs } from "../jobs.js";
import { View, useMounted } from "./view.js";

export default function Jobs() {
  useMounted(jobs);
  return html`<${View} title="Jobs" lead="Trainings and their results, and the labels that look wrong."
      actions=${html`<a class="button primary" href="/ui/train">New training</a><a class="button" href="/ui/compare">Compare</a>`}>
    <div id="jobs-problem"></div>
    <ul id="job-list" class="rows" aria-label="Jobs"></ul>
    <button type="button" id="jobs-more" class="more-rows" hidden>Show older</button>
  <//>`;
}
