/**
 * The edits of a data set's labels that are not a version yet, as the service keeps them. An edit shows at once and is sent in the
 * background, in order; what cannot be sent is tried again, and what is refused is taken back.
 */

import { computed, signal } from "@preact/signals";

import { Problem, getItems, idempotencyKey, post, remove } from "./api.js";

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 10000;

/** {edits: signal of a Map from the number of an image to {action, to}, waiting: signal, problem: signal, load(), add(edits), accept(body), undo(), publish(...), discard(), close()} */
export function openDraft(dataset) {
  const path = `/datasets/${dataset}/labels/draft`;
  const [edits, queue, problem] = [signal(new Map()), signal([]), signal(null)];
  let sequence = 0;
  let sending = null;
  let closed = false;

  async function load() {
    const { items, last } = await getItems(path);
    edits.value = new Map(items.map(({ image, action, to }) => [image, { action, to }]));
    ({ sequence } = last);
  }

  /** Send what waits, one request after the other. */
  async function send() {
    let wait = FIRST_WAIT_MS;
    while (queue.value.length && !closed) {
      const [entry] = queue.value;
      try {
        const answer = await entry.request();
        sequence = answer.sequence ?? 0;
        entry.resolve(answer);
        problem.value = null;
        wait = FIRST_WAIT_MS;
      } catch (error) {
        problem.value = error;
        if (error instanceof Problem && (error.status === 0 || error.status === 401 || error.status >= 500 || error.status === 429)) {
          await new Promise((resolve) => setTimeout(resolve, wait));
          wait = Math.min(2 * wait, LONGEST_WAIT_MS);
          continue;
        }
        entry.reject(error);
        await load().catch(() => {}); // the service knows what counts
      }
      queue.value = queue.value.filter((other) => other !== entry);
    }
    sending = null;
  }

  function enqueue(request) {
    const done = new Promise((resolve, reject) => {
      queue.value = [...queue.value, { request, resolve, reject }];
    });
    done.catch(() => {}); // shown as `problem`
    sending ??= send();
    return done;
  }

  /** list: [{image, from, to, action}] as the API takes them; one step to undo. */
  function add(list) {
    const next = new Map(edits.value);
    const made = { relabel: "relabelled", confirm: "confirmed", exclude: "excluded" };
    for (const { image, action, to } of list) next.set(image, { action: made[action], to: to ?? null });
    edits.value = next;
    const key = { "Idempotency-Key": idempotencyKey() };
    return enqueue(() => post(path, { edits: list }, key));
  }

  /** Accept flags of a job, as `accept` of the API says which; the edits are then loaded. */
  async function accept(accepted) {
    const key = { "Idempotency-Key": idempotencyKey() };
    await enqueue(() => post(path, { accept: accepted }, key));
    await load();
  }

  /** Take the last step back; the numbers of its images. */
  async function undo() {
    const { undone } = await enqueue(() => post(`${path}/undo`, undefined, { "If-Match": `"${sequence}"` }));
    const next = new Map(edits.value);
    for (const { image, now } of undone) {
      if (now) next.set(image, { action: now.action, to: now.to });
      else next.delete(image);
    }
    edits.value = next;
    return undone.map(({ image }) => image);
  }

  /** Make it a version: the new version. */
  async function publish(note, leaveOut = false) {
    const key = { "Idempotency-Key": idempotencyKey() };
    const made = await enqueue(() => post(`${path}/publish?${new URLSearchParams({ note, leave_out_moved_on: leaveOut })}`, undefined, key));
    edits.value = new Map();
    sequence = 0;
    return made;
  }

  async function discard() {
    await enqueue(async () => ((await remove(path)), { sequence: 0 }));
    edits.value = new Map();
  }

  const leaving = (event) => queue.value.length && event.preventDefault();
  addEventListener("beforeunload", leaving);
  const close = () => ((closed = queue.value.length === 0), removeEventListener("beforeunload", leaving));
  return { edits, waiting: computed(() => queue.value.length), problem, load, add, accept, undo, publish, discard, close };
}
