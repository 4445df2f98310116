/* Compiled as C: "new" is a name. */
int ThreeFromC(void) {
  const int new = 3;
  return new;
}
