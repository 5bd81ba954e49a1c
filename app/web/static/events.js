/** Server-sent events over fetch (an EventSource could not carry a key): parsing, and reconnecting where it stopped. */

import { Problem, authorized } from "./api.js";

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 15000;

/**
 * Call onEvent({id, type, data}) for each event until the stream has ended (204, or an event of type "done").
 * A broken connection is taken up again after the last id seen. Throws only what repeating cannot mend.
 */
export async function streamEvents(path, { onEvent, signal }) {
  let lastId = "";
  let wait = FIRST_WAIT_MS;
  while (!signal.aborted) {
    try {
      const headers = authorized({ Accept: "text/event-stream" });
      if (lastId) headers["Last-Event-ID"] = lastId;
      const response = await fetch(path, { headers, signal, cache: "no-store" });
      if (response.status === 204) return;
      if (!response.ok && response.status < 500 && response.status !== 429) {
        throw new Problem(await response.json().catch(() => ({})), response.status);
      }
      if (response.ok) {
        for await (const event of events(response.body)) {
          if (event.id) lastId = event.id;
          wait = FIRST_WAIT_MS;
          onEvent(event);
          if (event.type === "done") return;
        }
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Problem) throw error;
    }
    await pause(wait, signal);
    wait = Math.min(2 * wait, LONGEST_WAIT_MS);
  }
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).replaceAll("\r\n", "\n").split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const event = parse(block);
      if (event) yield event;
    }
  }
}

/** One block of lines; a comment (heartbeat) is no event. */
function parse(block) {
  const event = { id: "", type: "message" };
  const data = [];
  for (const line of block.split("\n")) {
    const [, field, value] = /^([^:]*):? ?(.*)$/.exec(line);
    if (field === "id") event.id = value;
    else if (field === "event") event.type = value;
    else if (field === "data") data.push(value);
  }
  if (!data.length) return null;
  try {
    return { ...event, data: JSON.parse(data.join("\n")) };
  } catch {
    return { ...event, data: data.join("\n") };
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}
