// What all that bench:serve measures goes through: rounds in which ways take
// turns, rows that are medians of these, what is to be reached, and how all of
// it is printed, for people and for programs.
//
// Rows are messages of serve.proto; what is done to their numbers is done by
// the names of the fields. Rows that are compared with each other have a field
// `way`, and a function
//
//   std::string Situation(const Row& row);
//
// beside them, which is the same for all that differ in their way only.

#ifndef FIRSTTOUCH_BENCH_SERVE_REPORT_H_
#define FIRSTTOUCH_BENCH_SERVE_REPORT_H_

#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "firsttouch/bench/serve.pb.h"
#include "google/protobuf/message.h"
#include "google/protobuf/repeated_field.h"

namespace firsttouch::bench {

using Words = std::vector<std::string>;
template <typename T>
using Repeated = google::protobuf::RepeatedPtrField<T>;

// Reads the command line. Ends the program unless --format is text or json.
void ParseFlags(int argc, char** argv, const char* usage);

// `words`, each of which must be one of those that there are; ends the program
// otherwise.
Words Checked(Words words, const char* flag, const Words& known);

Machine ThisMachine();

// A report of this machine with so many rounds.
template <typename Report>
Report NewReport(int rounds) {
  Report report;
  *report.mutable_machine() = ThisMachine();
  report.set_rounds(rounds);
  return report;
}

// One sample of each of so many subjects, then the next of each, for so many
// rounds. Of each subject its samples; nullopt is none.
template <typename Row>
std::vector<std::vector<Row>> TakeTurns(
    int rounds, size_t subjects,
    absl::FunctionRef<std::optional<Row>(size_t)> sample) {
  std::vector<std::vector<Row>> samples(subjects);
  for (int round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < subjects; ++i) {
      if (std::optional<Row> row = sample(i)) samples[i].push_back(*row);
    }
  }
  return samples;
}

// Sets each number of `row` to the median of what it is in `rounds`, and adds
// them all to the field of the same name with "round_" in front, if there is
// one. What is absent in all of them stays absent.
void SetMedians(const std::vector<const google::protobuf::Message*>& rounds,
                google::protobuf::Message& row);

// Adds a row of medians for each subject that has samples; what is not a number
// is as in the first of these.
template <typename Row>
void AddMedians(const std::vector<std::vector<Row>>& samples,
                Repeated<Row>* rows) {
  for (const std::vector<Row>& of_subject : samples) {
    if (of_subject.empty()) continue;
    std::vector<const google::protobuf::Message*> rounds;
    for (const Row& round : of_subject) rounds.push_back(&round);
    *rows->Add() = of_subject.front();
    SetMedians(rounds, *rows->rbegin());
  }
}

// The number in that field; nullopt where it is absent.
std::optional<double> NumberOf(const google::protobuf::Message& row,
                               const std::string& field);

// The median over the rounds of one row's number as a multiple of the other's;
// nullopt without a row or a number.
std::optional<double> RatioOfRounds(const google::protobuf::Message* numerator,
                                    const google::protobuf::Message* other,
                                    const std::string& field);

// The row of that way in the situation of `like`; null where there is none.
template <typename Row>
const Row* RowBeside(const Repeated<Row>& rows, const Row& like,
                     const std::string& way) {
  for (const Row& row : rows) {
    if (row.way() == way && Situation(row) == Situation(like)) return &row;
  }
  return nullptr;
}

// Adds what is to be reached: `measured` at most `bound`.
void AddGoal(const std::string& name, const std::string& where,
             const std::string& other, double bound,
             std::optional<double> measured, Repeated<Goal>* goals);

// A number in at most seven columns: "0", "0.25", "61.5", "1363", "220k"; "-"
// where there is none.
std::string Short(std::optional<double> value);

// "4 MiB", in the largest unit of which there is one.
std::string Size(uint64_t bytes);

// One or two lines of at most 80 columns, each ended.
std::string MachineText(const Machine& machine);

// Words, in lines of at most 80 columns, each ended.
std::string Wrapped(const std::string& words);

// How a row is shown: its number in each of these fields, divided by `unit`.
struct Column {
  const char* title;
  const char* field;
  double unit = 1;
};
struct Line {
  // Lines that follow each other with the same title are a table.
  std::string title;
  std::string label;
  std::vector<Column> columns;
  // The last column, "x": how many times the other row's this field is, within
  // the rounds. No field: there is no such column.
  const char* compared = "";
  const google::protobuf::Message* other = nullptr;
};

// The tables of all rows, each behind an empty line. The first column stands at
// the left, the others at the right, with two blanks between them or, where it
// would be wider than 80 columns, one.
std::string TablesText(
    const std::vector<std::pair<const google::protobuf::Message*, Line>>& rows);
template <typename Row>
std::string TablesText(const Repeated<Row>& rows,
                       absl::FunctionRef<Line(const Row&)> line) {
  std::vector<std::pair<const google::protobuf::Message*, Line>> lines;
  for (const Row& row : rows) lines.emplace_back(&row, line(row));
  return TablesText(lines);
}

// The goals by their names, with a line for each; and how many are reached.
// Nothing for none.
std::string GoalsText(const std::string& title, const Repeated<Goal>& goals);

// Writes `text`, or with --format=json the report, to standard output. Returns
// the program's exit status: a goal that was missed is no failure, for a busy
// machine must not fail a build.
int Print(const google::protobuf::Message& report, const std::string& text);

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_SERVE_REPORT_H_
