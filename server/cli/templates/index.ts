interface Input {
  name?: string;
}

const greet: atlas.Handler<Input | null> = async (input, ctx) => {
  const name = input?.name ?? "world";
  console.log("greeting", name);
  return { message: `Hello, ${name}!`, run: ctx.invocation_id };
};

export default greet;
