/* Included by cxx_guest.cc. */
static const int kTable[] = {100, 200};
