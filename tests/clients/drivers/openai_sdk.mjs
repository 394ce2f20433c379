// openai: chat completions.
import OpenAI from "openai";
import { all, asked, description, lookUp, run, schema } from "./driver.mjs";

const { model, prompt } = asked;
const client = new OpenAI({ baseURL: `${asked.address}/v1`, apiKey: asked.key });
const image = { type: "image_url", image_url: { url: `data:image/png;base64,${asked.base64}` } };
const says = (content) => [{ role: "user", content }];

async function complete(messages, more) {
  const answer = await client.chat.completions.create({ model, messages, ...more });
  return answer.choices[0].message;
}

run({
  listing: async () => (await all(client.models.list())).map(({ id }) => id),
  plain: async () => (await complete(says(prompt))).content,
  streamed: async () => {
    const chunks = await all(await client.chat.completions.create({ model, messages: says(prompt), stream: true }));
    return chunks.map((chunk) => chunk.choices[0]?.delta.content).filter(Boolean);
  },
  picture: async () => (await complete(says([image, { type: "text", text: prompt }]))).content,
  tool: async () => {
    const tools = [{ type: "function", function: { name: "look_up", description, parameters: schema } }];
    const called = await complete(says(prompt), { tools });
    const results = called.tool_calls.map(({ id, function: { arguments: given } }) => {
      return { role: "tool", tool_call_id: id, content: lookUp(JSON.parse(given)) };
    });
    return (await complete([...says(prompt), called, ...results], { tools })).content;
  },
});
