/** A problem document in the user's words. Knows no section of the page. */

import { Problem } from "./api.js";
import { fill, h } from "./dom.js";

/** The block that shows a problem; errors already shown beside their field are left out by the caller. */
export function problemBlock(problem, allErrors = problem.errors || []) {
  const errors = allErrors.filter((error) => ![error.detail, `${error.pointer}: ${error.detail}`].includes(problem.detail));
  return h("div", { class: "problem", role: "alert" },
    h("p", { class: "problem-title" }, problem.title),
    problem.detail && problem.detail !== problem.title && h("p", {}, problem.detail),
    problem.hint && h("p", { class: "hint" }, problem.hint),
    problem.type && h("p", { class: "small" }, h("a", { href: problem.type }, "What this means")),
    errors.length > 0 && h("ul", {}, errors.slice(0, 10).map((error) =>
      h("li", {}, error.pointer && h("code", {}, error.pointer), error.pointer && " ", error.detail))),
    errors.length > 10 && h("p", { class: "quiet" }, `and ${errors.length - 10} more`),
    problem.requestId && h("p", { class: "quiet small" }, "Request ", h("code", {}, problem.requestId)));
}

/** Show an error in a place, or clear the place with null. A bug of the page is shown too, and rethrown for the console. */
export function show(place, error, errors) {
  if (!error || error.status === 401) { // the field for the key says it
    fill(place);
  } else if (error instanceof Problem) {
    fill(place, problemBlock(error, errors));
  } else if (error.name !== "AbortError") {
    fill(place, problemBlock({ title: "This page made a mistake", detail: error.message }));
    throw error;
  }
}
