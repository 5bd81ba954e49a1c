/** Epoch reports as the lines of charts: grouped by what they measure, named in plain words. A new metric appears by itself. */

import { words } from "./format.js";

const NAMES = {
  loss: "Training",
  train_loss: "Training",
  noisy_validation_accuracy: "Noisy validation",
  noisy_validation_loss: "Noisy validation",
  test_accuracy: "Test",
  test_loss: "Test",
  test_accuracy_g1: "Test, g1",
  test_accuracy_g2: "Test, g2",
  test_accuracy_mean: "Test, mean",
};

/** reports: Map of epoch -> report. Returns {loss, accuracy}, each [{name, title, points}] in order of first appearance. */
export function series(reports) {
  const found = { loss: new Map(), accuracy: new Map() };
  for (const [epoch, report] of [...reports].sort(([a], [b]) => a - b)) {
    for (const [name, value] of numbers(report)) {
      const kind = name.includes("accuracy") ? "accuracy" : name.includes("loss") ? "loss" : null;
      if (!kind) continue;
      if (!found[kind].has(name)) found[kind].set(name, []);
      found[kind].get(name).push([epoch, value]);
    }
  }
  const lines = (map) => [...map].map(([name, points]) => ({ name, title: title(name), points }));
  return { loss: lines(found.loss), accuracy: lines(found.accuracy) };
}

/** {a: {b: 1}} as [["a_b", 1]] */
function numbers(report, prefix = "") {
  return Object.entries(report).flatMap(([name, value]) => {
    if (typeof value === "number") return [[prefix + name, value]];
    return value && typeof value === "object" && !Array.isArray(value) ? numbers(value, `${prefix}${name}_`) : [];
  });
}

function title(name) {
  return NAMES[name] || words(name.replace(/_?(accuracy|loss)_?/, " "));
}
