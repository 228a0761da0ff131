/* A WAGI program: says what it was asked, and what it was told about it. */
#include <stdio.h>
#include <stdlib.h>
int main(void) {
  char body[4096];
  size_t length = fread(body, 1, sizeof body, stdin);
  printf("content-type: text/plain\nx-kind: wagi\n\n%s %s?%s %s [%.*s]\n", getenv("REQUEST_METHOD"), getenv("PATH_INFO"),
         getenv("QUERY_STRING"), getenv("COLOUR") ? getenv("COLOUR") : "", (int)length, body);
  FILE *file = fopen("/site/page.txt", "r");
  if (file && (length = fread(body, 1, sizeof body, file))) printf("%.*s", (int)length, body);
  fprintf(stderr, "asked for %s\n", getenv("PATH_INFO"));
  return 0;
}
