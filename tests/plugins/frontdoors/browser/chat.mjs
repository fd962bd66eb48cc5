// Opens a page in Chromium and prints what OpenAI's client said there, as JSON.
//   node chat.mjs CHROMIUM PAGE_URL
import { chromium } from "playwright-core";

const [executablePath, url] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
try {
  const page = await browser.newPage();
  await page.goto(url);
  await page.waitForFunction(() => window.said !== undefined, undefined, { timeout: 60000 });
  console.log(JSON.stringify(await page.evaluate(() => window.said)));
} finally {
  await browser.close();
}
