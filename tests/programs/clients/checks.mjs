// What programs with clients of JavaScript share; the output is as that of `checks.py`.

import http from "node:http";
import { setTimeout as sleep } from "node:timers/promises";

export const { BASE, MODEL, EMBEDDER } = process.env;
export const ABSENT = "no-such-model";
export const STORY = "Write a long story about the sea.";
export const TOO_LONG = "sea ".repeat(9000);
export const WEATHER = {
  type: "object",
  properties: { city: { type: "string", enum: ["Paris", "Rome"] } },
  required: ["city"],
  additionalProperties: false,
};
const BOUND = 120_000;

/** Runs the checks, one a feature, or those that the environment's `ONLY` names. */
export async function run(checks) {
  const only = (process.env.ONLY ?? "").split(" ").filter(Boolean);
  for (const [feature, check] of Object.entries(checks)) {
    if (only.length > 0 && !only.includes(feature)) continue;
    let failure = "";
    try {
      await check();
    } catch (error) {
      failure = `${error?.stack ?? error}`;
    }
    process.stdout.write(JSON.stringify({ feature, failure }) + "\n");
  }
  process.exit(0);
}

export function ensure(condition, otherwise) {
  if (!condition) throw new Error(typeof otherwise === "string" ? otherwise : JSON.stringify(otherwise));
}

async function asked(path) {
  return (await fetch(BASE + path, { signal: AbortSignal.timeout(BOUND) })).json();
}

/** Waits until no request is inside an engine: after a cancelled one. */
export async function idle() {
  const deadline = Date.now() + BOUND;
  while ((await asked("/engines/ps")).some((engine) => engine.inside > 0)) {
    ensure(Date.now() < deadline, "a request is still inside though its client has gone");
    await sleep(50);
  }
}

/** Calls `full(free)` while all slots and the queue are taken: requests get a 429 until `free()` is called. */
export async function occupied(full) {
  const body = JSON.stringify({
    model: MODEL,
    messages: [{ role: "user", content: STORY }],
    max_tokens: 1500,
    stream: true,
    ignore_eos: true,
  });
  const requests = [];
  const free = () => {
    while (requests.length > 0) requests.pop().destroy();
  };
  const deadline = Date.now() + BOUND;
  try {
    while ((await asked("/engines/queue")).length < Number(process.env.QUEUE)) {
      ensure(Date.now() < deadline, "the queue did not fill");
      const request = http.request(`${BASE}/v1/chat/completions`, { method: "POST", agent: false });
      request.on("error", () => {}); // of the connection that free() ends
      request.end(body);
      requests.push(request);
      await sleep(200);
    }
    await full(free);
  } finally {
    free();
    await idle();
  }
}

/** The error of this class that a call rejects with. */
export async function raised(kind, call) {
  let answer;
  try {
    answer = await call();
  } catch (error) {
    if (error instanceof kind) return error;
    throw error;
  }
  throw new Error(`${kind.name} was not raised; the answer is ${JSON.stringify(answer)}`);
}
