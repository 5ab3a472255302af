// Anthropic's SDK.

import Anthropic from "@anthropic-ai/sdk";
import { ABSENT, BASE, MODEL, STORY, TOO_LONG, WEATHER, ensure, idle, occupied, raised, run } from "./checks.mjs";

const client = new Anthropic({ baseURL: BASE, apiKey: "none", maxRetries: 0 });
const story = { model: MODEL, max_tokens: 8, messages: [{ role: "user", content: STORY }] };

await run({
  async chat() {
    const answer = await client.messages.create(story);
    ensure(answer.content[0].text && answer.stop_reason === "max_tokens", answer);
    const names = [];
    for await (const model of client.models.list()) names.push(model.id);
    ensure(names.some((name) => name.includes(MODEL)), names);
  },
  async stream() {
    let pieces = 0;
    const stream = client.messages.stream(story).on("text", () => (pieces += 1));
    const whole = await stream.finalMessage();
    ensure(pieces > 1 && whole.stop_reason === "max_tokens", whole);
  },
  async tools() {
    const answer = await client.messages.create({
      ...story,
      max_tokens: 200,
      messages: [{ role: "user", content: "Use the tool: what is the weather in Paris?" }],
      tools: [{ name: "weather", input_schema: WEATHER }],
      tool_choice: { type: "any" },
    });
    ensure(answer.content.some((block) => block.type === "tool_use" && block.name === "weather"), answer);
  },
  async schema() {
    const answer = await client.messages.create({
      ...story,
      max_tokens: 64,
      output_config: { format: { type: "json_schema", schema: WEATHER } },
    });
    ensure(["Paris", "Rome"].includes(JSON.parse(answer.content[0].text).city), answer);
  },
  async errors() {
    const absent = await raised(Anthropic.NotFoundError, () => client.messages.create({ ...story, model: ABSENT }));
    ensure(absent.error.error.type === "not_found_error", absent.error);
    const long = [{ role: "user", content: TOO_LONG }];
    await raised(Anthropic.BadRequestError, () => client.messages.create({ ...story, messages: long }));
  },
  async cancellation() {
    for await (const _ of await client.messages.create({ ...story, max_tokens: 1500, stream: true })) break;
    await idle();
  },
  async retries() {
    await occupied(async (free) => {
      await raised(Anthropic.RateLimitError, () => client.messages.create(story));
      setTimeout(free, 1000);
      ensure((await client.messages.create(story, { maxRetries: 9 })).content, "no answer");
    });
  },
});
