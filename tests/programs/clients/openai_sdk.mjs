// OpenAI's SDK: `chat` completions or `responses`.

import OpenAI from "openai";
import { ABSENT, BASE, EMBEDDER, MODEL, STORY, TOO_LONG, WEATHER, ensure, idle, occupied, raised, run } from "./checks.mjs";

const client = new OpenAI({ baseURL: `${BASE}/v1`, apiKey: "none", maxRetries: 0 });
const story = { model: MODEL, messages: [{ role: "user", content: STORY }], max_tokens: 8 };
const asked = { model: MODEL, input: STORY, max_output_tokens: 16 };
const question = "Use the tool: what is the weather in Paris?";

const chat = {
  async chat() {
    const answer = await client.chat.completions.create(story);
    ensure(answer.choices[0].message.content, answer);
    ensure(answer.usage.completion_tokens === 8, answer);
  },
  async stream() {
    let pieces = 0;
    for await (const chunk of await client.chat.completions.create({ ...story, stream: true }))
      if (chunk.choices[0]?.delta.content) pieces += 1;
    ensure(pieces > 1, "too few pieces");
  },
  async tools() {
    const answer = await client.chat.completions.create({
      model: MODEL,
      messages: [{ role: "user", content: question }],
      tools: [{ type: "function", function: { name: "weather", parameters: WEATHER } }],
      tool_choice: "required",
      max_tokens: 200,
    });
    ensure(answer.choices[0].message.tool_calls?.[0].function.name === "weather", answer);
  },
  async schema() {
    const answer = await client.chat.completions.parse({
      ...story,
      max_tokens: 64,
      response_format: { type: "json_schema", json_schema: { name: "place", schema: WEATHER, strict: true } },
    });
    ensure(["Paris", "Rome"].includes(answer.choices[0].message.parsed.city), answer);
  },
  async embeddings() {
    const answer = await client.embeddings.create({ model: EMBEDDER, input: ["the sea", "a tax form"] });
    ensure(answer.data.length === 2 && answer.data[0].embedding.length > 8, answer);
  },
  async errors() {
    await raised(OpenAI.NotFoundError, () => client.chat.completions.create({ ...story, model: ABSENT }));
    const wrong = await raised(OpenAI.BadRequestError, () => client.chat.completions.create({ ...story, temperature: 9 }));
    ensure(wrong.param === "temperature", wrong);
    const long = [{ role: "user", content: TOO_LONG }];
    const tooLong = await raised(OpenAI.BadRequestError, () => client.chat.completions.create({ ...story, messages: long }));
    ensure(tooLong.code === "context_length_exceeded", tooLong);
  },
  async cancellation() {
    const stream = await client.chat.completions.create({ ...story, max_tokens: 1500, stream: true });
    for await (const _ of stream) break;
    await idle();
  },
  async retries() {
    await occupied(async (free) => {
      await raised(OpenAI.RateLimitError, () => client.chat.completions.create(story));
      setTimeout(free, 1000);
      ensure((await client.chat.completions.create(story, { maxRetries: 9 })).choices, "no answer");
    });
  },
};

const responses = {
  async chat() {
    const first = await client.responses.create(asked);
    ensure(first.output_text, first);
    const second = await client.responses.create({ ...asked, previous_response_id: first.id });
    ensure(second.usage.input_tokens > first.usage.input_tokens, second);
  },
  async stream() {
    const kinds = [];
    for await (const event of client.responses.stream(asked)) kinds.push(event.type);
    let id;
    for await (const event of await client.responses.create({ ...asked, background: true, stream: true })) {
      id = event.response.id;
      break;
    }
    const rest = [];
    const resumed = await client.responses.retrieve(id, { stream: true, starting_after: 0 });
    for await (const event of resumed) rest.push(event.type);
    ensure(rest[0] === "response.queued" && rest.at(-1) === "response.incomplete", rest);
    ensure(kinds[0] === "response.created" && kinds.at(-1) === "response.incomplete", kinds);
  },
  async tools() {
    const answer = await client.responses.create({
      model: MODEL,
      input: question,
      tools: [{ type: "function", name: "weather", parameters: WEATHER, strict: true }],
      tool_choice: "required",
      max_output_tokens: 200,
    });
    ensure(answer.output.some((item) => item.type === "function_call" && item.name === "weather"), answer);
  },
  async schema() {
    const answer = await client.responses.parse({
      ...asked,
      max_output_tokens: 64,
      text: { format: { type: "json_schema", name: "place", schema: WEATHER, strict: true } },
    });
    ensure(["Paris", "Rome"].includes(answer.output_parsed.city), answer);
  },
  async errors() {
    await raised(OpenAI.NotFoundError, () => client.responses.create({ ...asked, model: ABSENT }));
    await raised(OpenAI.BadRequestError, () => client.responses.create({ ...asked, input: TOO_LONG }));
  },
  async cancellation() {
    for await (const _ of await client.responses.create({ model: MODEL, input: STORY, stream: true })) break;
    await idle();
    const begun = await client.responses.create({ model: MODEL, input: STORY, background: true });
    ensure(begun.status === "queued", begun.status);
    const ended = await client.responses.cancel(begun.id);
    ensure(ended.status === "cancelled", ended.status);
    await idle();
  },
  async retries() {
    await occupied(async (free) => {
      await raised(OpenAI.RateLimitError, () => client.responses.create(asked));
      setTimeout(free, 1000);
      ensure((await client.responses.create(asked, { maxRetries: 9 })).output_text, "no answer");
    });
  },
};

await run({ chat, responses }[process.argv[2]]);
