// Streams of n = 3 through the official client: node stream.mjs BASE_URL RUNS. Prints one JSON line per run, or fails.

import assert from "node:assert/strict";
import OpenAI from "openai";

const [baseURL, runs] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0 });
const model = (await client.models.list()).data[0].id;

for (let run = 0; run < Number(runs); run += 1) {
  const stream = client.chat.completions.stream({
    model,
    messages: [{ role: "user", content: `run ${run}` }],
    n: 3,
    max_tokens: 16,
    seed: run,
    stream_options: { include_usage: true },
  });
  const texts = ["", "", ""];
  const seen = [];
  for await (const chunk of stream) {
    for (const choice of chunk.choices) {
      if (!seen.includes(choice.index)) seen.push(choice.index);
      texts[choice.index] += choice.delta.content ?? "";
    }
  }
  const final = await stream.finalChatCompletion();
  assert.deepEqual(seen, [0, 1, 2]);
  assert.deepEqual(final.choices.map((choice) => choice.index), [0, 1, 2]);
  assert.deepEqual(final.choices.map((choice) => choice.message.content), texts);
  for (const choice of final.choices) {
    assert.equal(choice.message.role, "assistant");
    assert.ok(["stop", "length"].includes(choice.finish_reason));
  }
  console.log(JSON.stringify({ run, characters: texts.map((text) => text.length) }));
}
