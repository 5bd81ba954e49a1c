/** One job, live: progress, curves, what went wrong, what came out. Follows the job's events while it is open. */

import { get, post, remove } from "./api.js";
import { chart } from "./curves.js";
import { announce, fill, h, write } from "./dom.js";
import { streamEvents } from "./events.js";
import { jobFiles } from "./files.js";
import { plain, words } from "./format.js";
import { labelIssues } from "./issues.js";
import { comparison, comparisonOpen, figures, plots, stages } from "./outcome.js";
import { problemBlock, show } from "./problems.js";
import { liveProgress } from "./progress.js";
import { selfTest } from "./selftest.js";
import { series } from "./series.js";

export const ENDED = ["succeeded", "failed", "cancelled"];
const LOG_LINES = 200;
const MOST_STEPS = 1000; // points of the loss within epochs: beyond, every second one goes

/**
 * {element, outcome, ready, update(job), close()}; `outcome` is what came of it, for a place below: when it comes, nothing that is
 * there moves. `ready` is a promise of all that is known of a job that has ended. `refreshList` asks for the
 * job anew, `removed` is called when it has been deleted.
 */
export function jobPanel(first, refreshList, removed) {
  const path = `/jobs/${first.id}`;
  const live = liveProgress();
  const accuracy = chart({ title: "Accuracy", share: true });
  const loss = chart({ title: "Loss" });
  const actions = h("div", { class: "actions" });
  const problem = h("div", {});
  const answers = h("div", {});
  const outcome = h("div", { class: "panel outcome" });
  const compared = h("div", {});
  const log = h("ol", { class: "log" });
  const logs = h("details", { class: "more" }, h("summary", {}, "Log"), log);
  const settings = h("dl", { class: "facts" });
  const hardware = h("p", { class: "quiet small hardware" });
  const element = h("div", { class: "job-panel" }, live.element, hardware, problem,
    h("div", { class: "charts" }, accuracy.element, loss.element),
    h("details", { class: "more" }, h("summary", {}, "Settings"), settings), logs, actions, answers);
  const reports = new Map(); // epoch -> report: one seen twice, after a resume, is one point
  let steps = []; // [epochs done, mean loss of the last steps]
  const closing = new AbortController();
  let status = null;
  let watching = false;
  let unsettled = false; // a job it is compared with still runs

  function draw() {
    const lines = series(reports, steps);
    accuracy.draw(lines.accuracy);
    loss.draw(lines.loss);
  }

  function report(job) {
    live.update(job);
    write(hardware, hardwareOf(job));
  }

  function update(job) {
    report(job);
    fill(answers, stages(job.metrics ?? undefined));
    if (status === job.status) {
      if (unsettled) showComparison();
      return;
    }
    if (status) announce(`The job is ${job.status}`);
    status = job.status;
    fill(actions, buttons(job));
    fill(problem, job.error && problemBlock(job.error));
    fill(settings, settingsOf(job));
    for (const part of [accuracy, loss]) part.expect(job.type === "train" && !ENDED.includes(status));
    return Promise.all([ENDED.includes(status) && showOutcome(job), watching ? null : watch()]);
  }

  /** Events from the first on: what happened before this panel opened is replayed. */
  async function watch() {
    watching = true;
    fill(log);
    try {
      await streamEvents(`${path}/events`, { onEvent: handle, signal: closing.signal });
    } catch (error) {
      show(problem, error);
    }
    watching = false;
    if (!closing.signal.aborted) refreshList();
  }

  let frame = 0;
  function drawSoon() {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(draw);
  }

  function handle({ type, data }) {
    if (type === "metric") {
      reports.set(data.epoch, data);
      drawSoon();
    } else if (type === "progress") {
      if (!ENDED.includes(status)) report({ status, progress: data });
      if (typeof data.train_loss === "number") addStep(data.fraction * data.epochs, data.train_loss);
    } else if (type === "log") {
      log.append(h("li", { "data-level": data.level }, data.message));
      if (log.children.length > LOG_LINES) log.firstChild.remove();
    } else if (type === "status" && data.status !== status) {
      refreshList();
    }
  }

  /** What an attempt did again, after a resume, takes the place of what the one before did. */
  function addStep(done, loss) {
    steps = [...steps.filter(([x]) => x < done), [done, loss]];
    if (steps.length > MOST_STEPS) steps = steps.filter((_, place) => place % 2);
    drawSoon();
  }

  async function showOutcome(job) {
    try {
      const trained = job.status === "succeeded" && job.type === "train";
      const files = jobFiles(job);
      const [tested, issues] = await Promise.all([selfTest(job, files), trained && labelIssues(job), showComparison()]);
      fill(outcome, figures(job), tested, compared, issues, trained && plots(job, files));
    } catch (error) {
      show(outcome, error);
    }
  }

  /** The list of jobs leaves comparisons out, the job itself has them. */
  async function showComparison() {
    const detail = await get(path);
    unsettled = comparisonOpen(detail);
    fill(compared, await comparison(detail));
  }

  function buttons(job) {
    const act = (text, run, style = "") => h("button", { type: "button", class: style, on: { click: (event) => attempt(event.target, run) } }, text);
    if (job.status === "cancelling") return [h("button", { type: "button", disabled: true }, "Cancelling")];
    if (!ENDED.includes(job.status)) return [act("Cancel", () => post(`${path}/cancel`))];
    return [
      job.status !== "succeeded" && act("Retry from the last checkpoint", () => post(`${path}/retry`)),
      act("Delete", drop, "quiet-button"),
    ];
  }

  async function drop() {
    if (!window.confirm("Delete this job and its files?")) return;
    await remove(path);
    removed();
  }

  async function attempt(button, run) {
    button.disabled = true;
    try {
      await run();
      await refreshList();
    } catch (error) {
      button.disabled = false;
      show(problem, error);
    }
  }

  const all = update(first);
  const ready = ENDED.includes(first.status) ? all : Promise.resolve();
  return { element, outcome, ready, update, close: () => closing.abort() };
}

/** What it computes on; until that is known a space, so that nothing moves then. */
function hardwareOf({ status, progress }) {
  if (!progress?.hardware) return ENDED.includes(status) ? "" : "\u00a0";
  return `${ENDED.includes(status) ? "Ran" : "Runs"} on ${progress.hardware}`;
}

function settingsOf(job) {
  return Object.entries(job.request)
    .filter(([, value]) => value !== null)
    .map(([name, value]) => [h("dt", {}, words(name)), h("dd", {}, plain(value))]);
}
