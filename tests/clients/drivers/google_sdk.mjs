// @google/genai.
import { GoogleGenAI } from "@google/genai";
import { all, asked, description, lookUp, run, schema } from "./driver.mjs";

const { model, prompt } = asked;
const { models } = new GoogleGenAI({ apiKey: asked.key, httpOptions: { baseUrl: asked.address } });
const image = { inlineData: { mimeType: "image/png", data: asked.base64 } };
const declared = { name: "look_up", description, parametersJsonSchema: schema };

run({
  listing: async () => (await all(await models.list())).map(({ name }) => name),
  plain: async () => (await models.generateContent({ model, contents: prompt })).text,
  streamed: async () => {
    const chunks = await all(await models.generateContentStream({ model, contents: prompt }));
    return chunks.map(({ text }) => text).filter(Boolean);
  },
  picture: async () => (await models.generateContent({ model, contents: [image, prompt] })).text,
  tool: async () => {
    const config = { tools: [{ functionDeclarations: [declared] }] };
    const contents = [{ role: "user", parts: [{ text: prompt }] }];
    const called = await models.generateContent({ model, contents, config });
    const parts = called.functionCalls.map(({ id, name, args }) => {
      return { functionResponse: { id, name, response: { result: lookUp(args) } } };
    });
    contents.push(called.candidates[0].content, { role: "user", parts });
    return (await models.generateContent({ model, contents, config })).text;
  },
});
