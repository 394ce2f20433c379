// The AI SDK, whatever provider stands behind the model.
import { generateText, isStepCount, jsonSchema, streamText, tool } from "ai";
import { all, asked, description, lookUp, run, schema } from "./driver.mjs";

const { prompt } = asked;
const parts = [{ type: "image", image: Buffer.from(asked.base64, "base64") }, { type: "text", text: prompt }];

export const runWith = (model) =>
  run({
    plain: async () => (await generateText({ model, prompt })).text,
    streamed: async () => {
      let failure;
      const pieces = await all(streamText({ model, prompt, onError: ({ error }) => (failure = error) }).textStream);
      if (failure) throw failure;
      return pieces;
    },
    picture: async () => (await generateText({ model, messages: [{ role: "user", content: parts }] })).text,
    tool: async () => {
      const look_up = tool({ description, inputSchema: jsonSchema(schema), execute: async (given) => lookUp(given) });
      return (await generateText({ model, prompt, tools: { look_up }, stopWhen: isStepCount(3) })).text;
    },
  });
