/** Epoch reports as the lines of two charts. A head or a metric that is new appears by itself. */

import { words } from "./format.js";

const ANSWER = "answer"; // the head that predicts when training is done

/**
 * reports: Map of epoch (from 1) -> epoch report; steps: [[epochs done, mean loss of the last steps]]. Returns {accuracy, loss}, each
 * [{title, points: [[epoch, value]]}].
 */
export function series(reports, steps) {
  const sorted = [...reports].sort(([a], [b]) => a - b);
  const heads = [...new Set(sorted.flatMap(([, report]) => Object.keys(report.test || {})))];
  const validation = (kind) => line("Noisy validation", sorted, (report) => report.noisy_validation?.[ANSWER]?.[kind]);
  const test = (head, kind) => line(head === ANSWER ? "Test" : `Test, ${headName(head)}`, sorted, (report) => report.test?.[head]?.[kind]);
  const answer = test(ANSWER, "accuracy");
  const held = line("Held out, before noise", sorted, (report) => report.before_noise?.[ANSWER]?.accuracy);
  const memorised = line("Wrong labels memorised", sorted, (report) => report.memorised?.[ANSWER]?.accuracy);
  const others = heads.filter((head) => head !== ANSWER).map((head) => ({ head, ...test(head, "accuracy") }))
    .filter((entry) => isNetwork(entry.head) || !same(entry, answer)); // the mean is mostly the answer itself
  return {
    accuracy: [answer, validation("accuracy"), held, memorised, ...others].filter((entry) => entry.points.length),
    loss: [{ title: "Training, within epochs", points: steps }, line("Training", sorted, (report) => report.train_loss), validation("loss"), test(ANSWER, "loss")].filter((entry) => entry.points.length),
  };
}

function line(title, sorted, value) {
  const points = sorted.map(([epoch, report]) => [epoch, value(report)]).filter(([, entry]) => typeof entry === "number");
  return { title, points };
}

const same = (a, b) => a.points.length === b.points.length && a.points.every(([, value], place) => value === b.points[place][1]);

const isNetwork = (head) => /^g\d+$/.test(head);

const headName = (head) => (isNetwork(head) ? head : words(head).toLowerCase());
