// What the host has to know about a wasm2c module beyond its generated header.
//
// Module<Z_<name>_instance_t> is specialized by a header that describe_module
// writes; wasm2c_guest does that in Bazel. It looks like this:
//
//   template <>
//   struct Module<Z_sq_instance_t> {
//     static constexpr char kName[] = "sq";
//     // One pointer for each imported module.
//     using Imports = std::tuple<Z_wasi_snapshot_preview1_instance_t*>;
//     // Offsets in the instance of the memories, tables and funcref globals
//     // that are its own, and of the pointers to imported modules.
//     static constexpr std::array<size_t, 1> kMemories = {
//         offsetof(Z_sq_instance_t, w2c_memory)};
//     static constexpr std::array<size_t, 1> kFuncrefTables = {...};
//     static constexpr std::array<size_t, 0> kExternrefTables = {};
//     static constexpr std::array<size_t, 0> kFuncrefGlobals = {};
//     static constexpr std::array<size_t, 1> kImports = {...};
//     static void Init();                                    //
//     Z_sq_init_module static void Instantiate(Z_sq_instance_t*, const
//     Imports&); static void Relink(Z_sq_instance_t*, const Imports&);  //
//     imports alone
//   };

#ifndef FIRSTTOUCH_INTEGRATIONS_WASM2C_MODULE_H_
#define FIRSTTOUCH_INTEGRATIONS_WASM2C_MODULE_H_

namespace firsttouch::wasm2c {

// Only specializations exist.
template <typename Instance>
struct Module;

}  // namespace firsttouch::wasm2c

#endif  // FIRSTTOUCH_INTEGRATIONS_WASM2C_MODULE_H_
