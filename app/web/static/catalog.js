/** What can be trained, as the service lists it: methods with their settings, and the settings every training has. */

import { get } from "./api.js";

/** {methods: [{name, title, idea, paper, relative_cost, schema, presets: [{name, title, values}]}], spec, networks} */
export async function catalog() {
  const answer = await get("/methods");
  return {
    methods: answer.items.map((each) => ({ ...each, presets: presets(each.presets) })),
    spec: answer.spec,
    networks: (answer.networks || []).map((each) => (typeof each === "string" ? { name: each } : each)),
  };
}

function presets(named = {}) {
  return Object.entries(named).map(([name, each]) => ({ name, title: each.title, values: each.params || each }));
}
