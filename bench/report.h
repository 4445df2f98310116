// Reports: where a number comes from, how samples become a row, what is to be
// reached, and how all of it is printed, for people and for programs.
//
// Rows are messages of report.proto; what is done to their numbers is done by
// the names of the fields.

#ifndef FIRSTTOUCH_BENCH_REPORT_H_
#define FIRSTTOUCH_BENCH_REPORT_H_

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "firsttouch/bench/report.pb.h"
#include "google/protobuf/message.h"
#include "google/protobuf/repeated_field.h"

namespace firsttouch::bench {

using Words = std::vector<std::string>;

Machine ThisMachine();

// One or two lines of at most 80 columns, each ended.
std::string MachineText(const Machine& machine);

// Ends the program unless --format is text or json. To call first.
void CheckFormat();

// Writes `text`, or with --format=json the report, to standard output. Returns
// the program's exit status: a goal that was missed is no failure, for a busy
// machine must not fail a build.
int Print(const google::protobuf::Message& report, const std::string& text);

// Sets each number of `row` to the median of what it is in `rounds`, and adds
// them all to the field of the same name with "round_" in front, if there is
// one. What is absent in all of them stays absent.
void SetMedians(const std::vector<const google::protobuf::Message*>& rounds,
                google::protobuf::Message& row);

// The same; what is not a number is as in the first of the rounds, of which
// there must be one.
template <typename Row>
Row MedianRow(const std::vector<Row>& rounds) {
  std::vector<const google::protobuf::Message*> messages;
  for (const Row& round : rounds) messages.push_back(&round);
  Row row = rounds.front();
  SetMedians(messages, row);
  return row;
}

// The number in that field; nullopt where it is absent.
std::optional<double> NumberOf(const google::protobuf::Message& row,
                               const std::string& field);
// Those of the rounds, in "round_" + field.
std::vector<double> RoundsOf(const google::protobuf::Message& row,
                             const std::string& field);

// The median over the rounds of one row's number as a multiple of the other's;
// nullopt without a row or a number.
std::optional<double> RatioOfRounds(const google::protobuf::Message* numerator,
                                    const google::protobuf::Message* other,
                                    const std::string& field);

// Decides whether it is reached; to call when the rest is there.
void Judge(Goal& goal, std::optional<double> measured,
           std::optional<double> measured_by_mean = std::nullopt);

// A number in at most seven columns: "0", "0.25", "61.5", "1363", "220k"; "-"
// where there is none.
std::string Short(std::optional<double> value);

// Of the row, in thousandths.
std::string Thousandths(const google::protobuf::Message& row,
                        const std::string& field);

// Lines of cells, the first line is the titles. The first column stands at the
// left, the others at the right, with two blanks between them or, where it
// would be wider than 80 columns, one.
std::string TableText(const std::vector<Words>& lines);

// The goals by their names, with a line for each; and how many are reached.
std::string GoalsText(const google::protobuf::RepeatedPtrField<Goal>& goals);

// Words, in lines of at most 80 columns, each ended.
std::string Wrapped(const std::string& words);

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_REPORT_H_
