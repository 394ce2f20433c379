import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { asked } from "./driver.mjs";
import { runWith } from "./vercel.mjs";

runWith(createOpenAICompatible({ name: "ours", baseURL: `${asked.address}/v1`, apiKey: asked.key })(asked.model));
