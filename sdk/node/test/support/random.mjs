/**
 * Seeded randomness for tests (mulberry32).
 *
 * Rules it keeps: the seed comes from SEED or the clock, and is printed, so that a run can be repeated. It must not know
 * what it is for.
 */

/** A source of numbers from 0 up to 1, and its seed. */
export function seededRandom(name) {
  const seed = Number(process.env.SEED ?? Date.now() % 1_000_000_007);
  console.log(`${name}: SEED=${seed}`);
  let state = seed >>> 0;
  const random = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
  return { seed, random, below: (limit) => Math.floor(random() * limit) };
}
