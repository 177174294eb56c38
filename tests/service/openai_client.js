// What somebody writes with OpenAI's package: node openai_client.js URL PHOTO. Prints JSON.
const OpenAI = require("openai").default;
const { readFileSync } = require("node:fs");

async function main([baseURL, photo]) {
  const client = new OpenAI({ baseURL, apiKey: "any", maxRetries: 0 });
  const url = `data:image/jpeg;base64,${readFileSync(photo).toString("base64")}`;
  const messages = [
    { role: "user", content: [{ type: "text", text: "What is this?" }, { type: "image_url", image_url: { url } }] },
  ];
  const answer = await client.chat.completions.create({ model: "default", messages, temperature: 0 });
  const whole = answer.choices[0].message.content;
  let streamed = "";
  for await (const chunk of await client.chat.completions.create({ model: "default", messages, stream: true })) {
    streamed += chunk.choices[0].delta.content ?? "";
  }
  const models = [];
  for await (const model of client.models.list()) models.push(model.id);
  const refused = await client.chat.completions
    .create({ model: "default", messages: [{ role: "user", content: "Hello" }] })
    .catch((error) => ({ status: error.status, message: error.message }));
  console.log(JSON.stringify({ whole, streamed, models, refused }));
}

main(process.argv.slice(2));
