// The AI SDK over one of its providers: `openai` (responses), `openai-compatible`, `anthropic` or `ollama`.

import { APICallError, RetryError, embedMany, generateText, jsonSchema, Output, streamText, tool } from "ai";
import { ABSENT, BASE, EMBEDDER, MODEL, STORY, TOO_LONG, WEATHER, ensure, idle, occupied, raised, run } from "./checks.mjs";

const api = process.argv[2];
const made = {
  openai: async () => (await import("@ai-sdk/openai")).createOpenAI({ baseURL: `${BASE}/v1`, apiKey: "none" }),
  "openai-compatible": async () =>
    (await import("@ai-sdk/openai-compatible")).createOpenAICompatible({
      name: "greenroom",
      baseURL: `${BASE}/v1`,
      supportsStructuredOutputs: true,
    }),
  anthropic: async () =>
    (await import("@ai-sdk/anthropic")).createAnthropic({ baseURL: `${BASE}/v1`, apiKey: "none" }),
  ollama: async () => (await import("ai-sdk-ollama")).createOllama({ baseURL: BASE }),
};
const provider = await made[api]();
const story = { model: provider(MODEL), prompt: STORY, maxOutputTokens: 16, maxRetries: 0 };
const place = jsonSchema(WEATHER);

const checks = {
  async chat() {
    const answer = await generateText(story);
    ensure(answer.text && answer.finishReason === "length", answer.finishReason);
    ensure(answer.usage.outputTokens === 16, answer.usage);
  },
  async stream() {
    let pieces = 0;
    for await (const _ of streamText(story).textStream) pieces += 1;
    ensure(pieces > 1, "too few pieces");
  },
  async tools() {
    const answer = await generateText({
      ...story,
      prompt: "Use the tool: what is the weather in Paris?",
      maxOutputTokens: 200,
      tools: { weather: tool({ inputSchema: place, execute: async ({ city }) => `It rains in ${city}.` }) },
      // Ollama's API cannot require a call.
      toolChoice: api === "ollama" ? "auto" : "required",
    });
    ensure(api === "ollama" || answer.toolResults[0]?.output.startsWith("It rains in"), answer.content);
  },
  async schema() {
    const output = Output.object({ schema: place });
    // For models that are not Claude the provider would make a tool of the schema.
    const providerOptions = { anthropic: { structuredOutputMode: "outputFormat" } };
    const answer = await generateText({ ...story, maxOutputTokens: 64, output, providerOptions });
    ensure(["Paris", "Rome"].includes(answer.output.city), answer.output);
  },
  async errors() {
    const absent = await raised(Error, () => generateText({ ...story, model: provider(ABSENT) }));
    ensure(ofCall(absent).statusCode === 404, absent);
    const tooLong = await raised(Error, () => generateText({ ...story, prompt: TOO_LONG }));
    ensure(ofCall(tooLong).statusCode === 400, tooLong);
  },
  async cancellation() {
    const gone = new AbortController();
    const { textStream } = streamText({ ...story, maxOutputTokens: 1500, abortSignal: gone.signal });
    for await (const _ of textStream) break;
    gone.abort();
    await idle();
  },
  async retries() {
    await occupied(async (free) => {
      const refused = await raised(Error, () => generateText(story));
      ensure(ofCall(refused).statusCode === 429, refused);
      setTimeout(free, 1000);
      ensure((await generateText({ ...story, maxRetries: 5 })).text, "no answer");
    });
  },
};
if (api !== "anthropic")
  checks.embeddings = async () => {
    const model = provider.textEmbeddingModel?.(EMBEDDER) ?? provider.embeddingModel(EMBEDDER);
    const { embeddings } = await embedMany({ model, values: ["the sea", "a tax form"] });
    ensure(embeddings.length === 2, embeddings);
  };

/** The APICallError that an error is, or was made of; Ollama's provider has a class of its own around its library's. */
function ofCall(error) {
  const call = RetryError.isInstance(error) ? error.lastError : error;
  if (api === "ollama" && call.name === "OllamaError") return { statusCode: call.cause.status_code };
  ensure(APICallError.isInstance(call), `${error}`);
  return call;
}

await run(checks);
