import { createOpenAI } from "@ai-sdk/openai";
import { asked } from "./driver.mjs";
import { runWith } from "./vercel.mjs";

runWith(createOpenAI({ baseURL: `${asked.address}/v1`, apiKey: asked.key })(asked.model));
