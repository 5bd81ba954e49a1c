/** Which view an address shows. A view is loaded when it is first needed. */

const ROUTES = [
  [/^\/ui\/datasets$/, "/ui/datasets", () => import("./views/datasets.js")],
  [/^\/ui\/datasets\/(?<id>[^/]+)$/, "/ui/datasets", () => import("./views/dataset.js")],
  [/^\/ui\/train$/, "/ui/train", () => import("./views/train.js")],
  [/^\/ui\/jobs$/, "/ui/jobs", () => import("./views/jobs.js")],
  [/^\/ui\/jobs\/(?<id>[^/]+)$/, "/ui/jobs", () => import("./views/job.js")],
  [/^\/ui\/review\/(?<id>[^/]+)$/, "/ui/jobs", () => import("./views/review.js")],
  [/^\/ui\/compare$/, "/ui/jobs", () => import("./views/compare.js")],
  [/^\/ui\/models$/, "/ui/models", () => import("./views/models.js")],
  [/^\/ui\/models\/(?<id>[^/]+)$/, "/ui/models", () => import("./views/model.js")],
  [/^\/ui\/queue$/, "/ui/queue", () => import("./views/queue.js")],
  [/^\/ui\/predict$/, "/ui/predict", () => import("./views/predict.js")],
];

/** {load(): a promise of the component, parameters: of it, section: address in the navigation}. */
export function routeOf(path) {
  for (const [pattern, section, load] of ROUTES) {
    const match = pattern.exec(path);
    if (match) return { section, parameters: { ...match.groups }, load: async () => (await load()).default };
  }
  return { section: null, parameters: {}, load: async () => (await import("./views/missing.js")).default };
}
