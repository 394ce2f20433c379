import { createGoogleGenerativeAI } from "@ai-sdk/google";
import { asked } from "./driver.mjs";
import { runWith } from "./vercel.mjs";

runWith(createGoogleGenerativeAI({ baseURL: `${asked.address}/v1beta`, apiKey: asked.key })(asked.model));
