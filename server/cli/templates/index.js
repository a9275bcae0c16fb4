/**
 * @param {{ name?: string } | null} input
 * @param {atlas.Context} ctx
 */
export default async function (input, ctx) {
  const name = input?.name ?? "world";
  console.log("greeting", name);
  return { message: `Hello, ${name}!`, run: ctx.invocation_id };
}
