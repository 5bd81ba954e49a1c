/** How far a job is: bar, phase, epoch, speed, time left; of one that ends meanwhile, how it ended. A screen reader is told of a new epoch, not of every step. */

import { h, write } from "./dom.js";
import { duration, number, words } from "./format.js";

const ACTIVE = ["queued", "running", "cancelling"];

export function liveProgress() {
  const bar = h("progress", { max: 1, "aria-label": "Progress of the job" });
  const text = h("span", { class: "progress-text" });
  const spoken = h("span", { class: "unseen", "aria-live": "polite" });
  const element = h("div", { class: "progress-line", hidden: true }, bar, text, spoken);

  function update({ status, progress }) {
    if (!ACTIVE.includes(status)) {
      if (status === "succeeded") bar.value = 1;
      write(text, words(status));
      return;
    }
    element.hidden = false;
    if (status === "queued") {
      bar.removeAttribute("value");
      write(text, "Queued");
      return;
    }
    if (typeof progress?.fraction === "number") bar.value = progress.fraction;
    else bar.removeAttribute("value");
    write(text, describe(progress || {}, status));
    if (progress?.epoch) write(spoken, `epoch ${progress.epoch} of ${progress.epochs}`);
  }
  return { element, update };
}

function describe(progress, status) {
  return [
    status === "cancelling" ? "Cancelling" : words(progress.phase || "starting"),
    progress.epoch != null && progress.epochs && `epoch ${progress.epoch} of ${progress.epochs}`,
    progress.images_per_second && `${number(progress.images_per_second)} images/s`,
    progress.eta_seconds != null && status === "running" && `${duration(progress.eta_seconds)} left`,
  ].filter(Boolean).join(" · ");
}
