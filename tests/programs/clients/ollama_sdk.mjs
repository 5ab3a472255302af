// Ollama's library.

import { Ollama } from "ollama";
import { ABSENT, BASE, EMBEDDER, MODEL, STORY, TOO_LONG, WEATHER, ensure, idle, raised, run } from "./checks.mjs";

const client = new Ollama({ host: BASE });
const story = { model: MODEL, messages: [{ role: "user", content: STORY }], options: { num_predict: 8 } };

await run({
  async chat() {
    const answer = await client.chat(story);
    ensure(answer.message.content && answer.done_reason === "length" && answer.eval_count === 8, answer);
    const { models } = await client.list();
    ensure(models.some((model) => model.model.replace(/:latest$/, "") === MODEL), models);
  },
  async stream() {
    const parts = [];
    for await (const part of await client.chat({ ...story, stream: true })) parts.push(part);
    ensure(parts.length > 2 && parts.at(-1).done_reason === "length", parts);
  },
  async tools() {
    // Ollama's API cannot require a call: a small model may as well answer in words.
    const answer = await client.chat({
      ...story,
      tools: [{ type: "function", function: { name: "weather", description: "", parameters: WEATHER } }],
    });
    ensure(answer.message.tool_calls || answer.message.content, answer);
  },
  async schema() {
    const answer = await client.chat({ ...story, format: WEATHER, options: { num_predict: 64 } });
    ensure(["Paris", "Rome"].includes(JSON.parse(answer.message.content).city), answer);
  },
  async embeddings() {
    const answer = await client.embed({ model: EMBEDDER, input: ["the sea", "a tax form"] });
    ensure(answer.embeddings.length === 2, answer);
  },
  async errors() {
    const absent = await raised(Error, () => client.chat({ ...story, model: ABSENT }));
    ensure(absent.name === "ResponseError" && absent.status_code === 404, absent);
    const messages = [{ role: "user", content: TOO_LONG }];
    ensure((await raised(Error, () => client.chat({ ...story, messages }))).status_code === 400, "not a 400");
  },
  async cancellation() {
    const stream = await client.chat({ ...story, stream: true, options: { num_predict: 1500 } });
    for await (const _ of stream) break;
    stream.abort();
    await idle();
  },
});
