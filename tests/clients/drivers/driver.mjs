// What driver.py is, for clients in JavaScript.
import { readFileSync } from "node:fs";

const { ADDRESS: address, KEY: key, MODEL: model, CASE: name, PROMPT: prompt, PICTURE: picture } = process.env;

export const asked = { address, key, model, prompt, base64: readFileSync(picture).toString("base64") };

export const lookUp = ({ code }) => `found ${code}`;

export const schema = { type: "object", properties: { code: { type: "string" } }, required: ["code"] };

export const description = "Look a code up.";

export async function all(pieces) {
  const list = [];
  for await (const piece of pieces) list.push(piece);
  return list;
}

export async function run(cases) {
  let told;
  try {
    told = { saw: await cases[name]() };
  } catch (error) {
    told = { error: String(error) };
  }
  console.log(JSON.stringify(told));
}
