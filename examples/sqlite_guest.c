// SQLite as a guest: one in-memory database per instance, and the operations of
// tenants on it. Compiled to WebAssembly; see sqlite_tenants.cc.
//
// Functions that can fail return a negative number, computed from SQLite's
// result code: -1000 - code.
#include <stdint.h>
#include <string.h>

#include "sqlite3.h"

#define EXPORT(name) __attribute__((export_name(#name)))

static sqlite3* db;

static int64_t Failed(int code) { return -1000 - code; }

// Runs statements without results.
static int64_t Execute(const char* sql) {
  const int code = sqlite3_exec(db, sql, NULL, NULL, NULL);
  return code == SQLITE_OK ? 0 : Failed(code);
}

// Runs one statement with up to two numbers as its parameters, and returns the
// number in the first column of the first row; 0 where there is none.
static int64_t Number(const char* sql, int64_t first, int64_t second) {
  sqlite3_stmt* statement;
  int code = sqlite3_prepare_v2(db, sql, -1, &statement, NULL);
  if (code != SQLITE_OK) return Failed(code);
  const int parameters = sqlite3_bind_parameter_count(statement);
  if (parameters > 0) sqlite3_bind_int64(statement, 1, first);
  if (parameters > 1) sqlite3_bind_int64(statement, 2, second);
  int64_t result = 0;
  code = sqlite3_step(statement);
  if (code == SQLITE_ROW) {
    result = sqlite3_column_int64(statement, 0);
    code = sqlite3_step(statement);
  }
  sqlite3_finalize(statement);
  return code == SQLITE_DONE ? result : Failed(code);
}

// Opens the database and fills it: `rows` rows, "row number <n>" at n, and an
// index over the text.
EXPORT(setup) int64_t setup(int64_t rows) {
  const int code = sqlite3_open(":memory:", &db);
  if (code != SQLITE_OK) return Failed(code);
  int64_t result = Execute(
      "create table items(id integer primary key, text text);"
      "create table owned(id integer primary key, owner integer, text text)");
  if (result != 0) return result;
  result = Number(
      "with recursive n(x) as (select 1 union all select x + 1 from n "
      "where x < ?1) insert into items select x, 'row number ' || x from n",
      rows, 0);
  if (result != 0) return result;
  return Execute("create index items_by_text on items(text)");
}

// Finds a row by its text, through the index; returns its id.
EXPORT(find) int64_t find(int64_t n) {
  return Number("select id from items where text = 'row number ' || ?1", n, 0);
}

// The sum of the ids from `first` to `last`.
EXPORT(sum) int64_t sum(int64_t first, int64_t last) {
  return Number("select sum(id) from items where id between ?1 and ?2", first,
                last);
}

// The largest id.
EXPORT(last) int64_t last(void) {
  return Number("select max(id) from items", 0, 0);
}

// Changes the text of one row to one that names the owner.
EXPORT(update) int64_t update(int64_t id, int64_t owner) {
  return Number("update items set text = 'changed by ' || ?2 where id = ?1", id,
                owner);
}

// The owner that the row's text names; 0 if the text is unchanged.
EXPORT(changed_by) int64_t changed_by(int64_t id) {
  return Number(
      "select cast(substr(text, 12) as integer) from items where id = ?1 and "
      "text like 'changed by %'",
      id, 0);
}

// The number of all rows that any tenant has changed.
EXPORT(changed) int64_t changed(void) {
  return Number(
      "select count(*) from items where text >= 'changed by ' and text < "
      "'changed by~'",
      0, 0);
}

// Inserts `rows` rows that belong to `owner`.
EXPORT(insert) int64_t insert(int64_t owner, int64_t rows) {
  return Number(
      "with recursive n(x) as (select 1 union all select x + 1 from n where "
      "x < ?2) insert into owned(owner, text) select ?1, 'secret ' || ?1 || "
      "' ' || x from n",
      owner, rows);
}

// The number of rows that belong to `owner`, and of those that do not.
EXPORT(mine) int64_t mine(int64_t owner) {
  return Number(
      "select count(*) from owned where owner = ?1 and text like "
      "'secret ' || ?1 || ' %'",
      owner, 0);
}
EXPORT(foreign) int64_t foreign(int64_t owner) {
  return Number("select count(*) from owned where owner <> ?1", owner, 0);
}

// Touches any address, as a bug or an attack would.
EXPORT(peek) int32_t peek(uint32_t address) {
  return *(volatile int32_t*)(uintptr_t)address;
}
EXPORT(poke) void poke(uint32_t address, int32_t value) {
  *(volatile int32_t*)(uintptr_t)address = value;
}
