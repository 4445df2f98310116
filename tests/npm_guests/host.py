"""Writes the host of a guest that somebody else compiled, and what to do with it.

  host.py STEPS HEADER DESCRIPTION > PROGRAM

HEADER is the guest's generated one, DESCRIPTION its .firsttouch.h, as they are
to be included; HEADER is also read. The host has what the module imports:
functions that write their name and arguments down and give 0, memories and
tables that are empty, globals. STEPS says what to call, a line a step:

  global MODULE.FIELD VALUE    an imported global's value; others are 0
  returns MODULE.FIELD VALUE   what an imported function gives; others give 0
  call EXPORT ARGUMENT...      calls it; its result becomes $1, the next $2, ...
  call EXPORT ARGUMENT... = R  the same, and the result has to be R
  table EXPORT TYPE I ARGUMENT...
                               calls the function that element I of an exported
                               table holds, and may have = R too. TYPE is the
                               result's letter and the parameters', as in
                               emscripten's names: viijfd
  store ADDRESS HEX            writes bytes into the first memory
  text ADDRESS WORDS           the same with text and a zero byte
  load ADDRESS                 reads 32 bits; they become the next $ too
  load ADDRESS = R             the same, and they have to be R
  ready                        the snapshot is taken here

ADDRESS and ARGUMENT are numbers, $N, or $N+number. # begins a comment.
"""

import re
import sys

# Modules that the host brings from the library.
WASI = 'wasi_snapshot_preview1'

TYPES = {'u32': 'u32', 'u64': 'u64', 'f32': 'f32', 'f64': 'f64'}
LETTERS = {'v': 'void', 'i': 'u32', 'j': 'u64', 'f': 'f32', 'd': 'f64'}


def mangle(name):
  """How wasm2c 1.0.32 spells a name."""
  return 'Z_' + ''.join(
      chr(c) if (chr(c).isalnum() and c < 128 and c != ord('Z')) or c == ord('_')
      else 'Z%02X' % c for c in name.encode('utf-8'))


def value(text, numbers):
  """An argument as the initializer of a Value. numbers: which steps have one."""
  found = re.fullmatch(r'(?:\$(\d+)\+?)?(-?\w+)?', text)
  if not found:
    sys.exit('host.py: not understood: %r' % text)
  result, number = found.groups()
  if result and int(result) > len(numbers):
    sys.exit('host.py: there is no $%s yet' % result)
  return '{%d, %du}' % (numbers[int(result) - 1] if result else 0,
                        int(number or '0', 0) % 2**64)


def main():
  steps_path, header_path, description = sys.argv[1:]
  with open(header_path, encoding='utf-8') as file:
    header = file.read()
  name, arguments = re.search(r'^void Z_(\w+)_instantiate\(([^)]*)\);', header,
                              re.M).groups()
  imports = re.findall(r'struct Z_(\w+)_instance_t\*', arguments)
  with open(steps_path, encoding='utf-8') as file:
    lines = [line.split('#')[0].split() for line in file]
  returned = {mangle(module) + mangle(field): (module, field, int(number, 0))
              for module, field, number in
              ((*words[1].rsplit('.', 1), words[2])
               for words in lines if words[:1] == ['returns'])}
  stubs, fields = [], {module: [] for module in imports}
  parts, wasi = [], {}
  for result, symbol, module, parameters in re.findall(
      r'^(?:extern )?([\w]+\*?) (Z_\w+)\(struct Z_(\w+)_instance_t\*(.*?)\);$',
      header, re.M):
    if module not in imports:
      continue
    types = [kind.strip() for kind in parameters.split(',') if kind.strip()]
    if module == WASI:
      # The same for the interpreter. (Nothing could jump out of that.)
      function = symbol[len('Z_%sZ_' % module):]
      if function != 'proc_exit':
        wasi[function.replace('_legalized', '')] = (
            'firsttouch::wasm2c::Put(%s(wasi%s), &out);' % (symbol, ''.join(
                ', firsttouch::wasm2c::Get<%s>(in[%d])' % (TYPES[kind], i)
                for i, kind in enumerate(types))))
      continue
    field = symbol[len('Z_%s' % module):]
    if result.endswith('*'):
      kind = result[:-1]
      fields[module].append('  %s %s = {};' % (kind, field))
      stubs.append('%s %s(Z_%s_instance_t* host) { return &host->%s; }' % (
          result, symbol, module, field))
      parts.append((symbol, module, field, kind))
      continue
    if symbol in returned and result != 'u32':
      sys.exit('host.py: %s does not give 32 bits' % symbol)
    stubs.append(
        '%s %s(Z_%s_instance_t*%s) {\n  firsttouch::npm::Note("%s", {%s});\n'
        '%s}' % (result, symbol, module,
                 ''.join(', %s p%d' % (kind, i) for i, kind in enumerate(types)),
                 symbol,
                 ', '.join('firsttouch::npm::Bits(p%d)' % i
                           for i in range(len(types))),
                 '' if result == 'void' else '  return %du;\n' % (
                     returned[symbol][2] % 2**32 if symbol in returned else 0)))

  thunks, steps, globals_, ready = {}, [], [], None
  # How many results there are, and which of them are not those of functions
  # without one.
  done, numbers = 0, []

  def add_call(export, thunk, before, call, result, arguments, wanted, more=''):
    nonlocal done
    thunks[thunk] = before + (
        call + ';' if result == 'void' else
        'firsttouch::wasm2c::Put(%s, out);' % call)
    steps.append(
        '{.name = "%s", .call = &Call_%s, %s.in = {%s}, '
        '.has_wanted = %s, .wanted = %s}' % (
            export, thunk, more,
            ', '.join(value(word, numbers) for word in arguments),
            *wanted.split(', ')))
    done += 1
    if result != 'void':
      numbers.append(done)

  for words in lines:
    if not words or words[0] == 'returns':
      continue
    wanted = 'false, 0'
    if len(words) > 2 and words[-2] == '=':
      wanted = 'true, %du' % (int(words[-1], 0) % 2**64)
      words = words[:-2]
    if words[0] == 'global':
      globals_.append((words[1], int(words[2], 0)))
    elif words[0] == 'ready':
      ready = len(steps)
    elif words[0] in ('store', 'text'):
      octets = (bytes.fromhex(words[2]) if words[0] == 'store'
                else ' '.join(words[2:]).encode() + b'\0')
      steps.append('{.at = %s, .bytes = {%s}}' % (
          value(words[1], numbers), ', '.join(str(octet) for octet in octets)))
    elif words[0] == 'load':
      steps.append('{.at = %s, .has_wanted = %s, .wanted = %s}' % (
          value(words[1], numbers), *wanted.split(', ')))
      done += 1
      numbers.append(done)
    elif words[0] == 'call':
      symbol = 'Z_%s%s' % (name, mangle(words[1]))
      declared = re.search(r'^(\w+) %s\(Z_%s_instance_t\*(.*?)\);' % (
          re.escape(symbol), name), header, re.M)
      if not declared:
        sys.exit('host.py: %s is no exported function' % words[1])
      types = [kind.strip() for kind in declared[2].split(',') if kind.strip()]
      if len(types) != len(words) - 2:
        sys.exit('host.py: %s has the parameters %s' % (words[1], types))
      call = '%s(static_cast<Z_%s_instance_t*>(it)%s)' % (
          symbol, name, ''.join(', firsttouch::wasm2c::Get<%s>(in[%d])' % (
              TYPES[kind], i) for i, kind in enumerate(types)))
      add_call(words[1], symbol, '', call, declared[1], words[2:], wanted)
    elif words[0] == 'table':
      symbol = 'Z_%s%s' % (name, mangle(words[1]))
      if not re.search(r'^wasm_rt_funcref_table_t\* %s\(' % re.escape(symbol),
                       header, re.M):
        sys.exit('host.py: %s is no exported table of functions' % words[1])
      result, types = LETTERS[words[2][0]], [LETTERS[c] for c in words[2][1:]]
      if len(types) != len(words) - 4:
        sys.exit('host.py: %s takes %d arguments' % (words[2], len(types)))
      call = ('reinterpret_cast<%s (*)(%s)>(function.func)(%s)' % (
          result, ', '.join(['void*'] + types),
          ', '.join(['function.module_instance'] +
                    ['firsttouch::wasm2c::Get<%s>(in[%d])' % (kind, i + 1)
                     for i, kind in enumerate(types)])))
      add_call(
          words[1], '%s_%s' % (symbol, words[2]),
          'const wasm_rt_funcref_t function = firsttouch::npm::Element(\n'
          '      *%s(static_cast<Z_%s_instance_t*>(it)), in[0]);\n  ' % (
              symbol, name),
          call, result, words[3:], wanted, more='.in_table = true, ')
    else:
      sys.exit('host.py: %r is no step' % ' '.join(words))
  if ready is None:
    sys.exit('host.py: no step is "ready"')

  set_globals = []
  for full, number in globals_:
    module, field = full.rsplit('.', 1)
    symbol = mangle(module) + mangle(field)
    for known, host, host_field, _ in parts:
      if known == symbol:
        set_globals.append('    Z_%s.%s = %d;' % (host, host_field, number))
  others = [module for module in imports if module != WASI]
  print('// Written by host.py.')
  print('#include <memory>\n#include <vector>\n')
  print('#include "firsttouch/integrations/wasm2c/any_guest.h"')
  print('#include "firsttouch/integrations/wasm2c/wasi.h"')
  print('#include "tests/npm_guests/npm_guest.h"')
  print('#include "%s"\n' % description)
  for module in others:
    print('struct Z_%s_instance_t {\n%s\n};' % (module,
                                               '\n'.join(fields[module])))
  print('extern "C" {\n%s\n}  // extern "C"\n' % '\n'.join(stubs))
  print('namespace firsttouch::npm {\nnamespace {\n')
  print('class Host : public Imports {\n public:\n  Host() {\n%s\n  }\n'
        '  std::vector<void*> get() override {\n    return {%s};\n  }\n' % (
            '\n'.join(set_globals),
            ', '.join('&' + ('wasi_' if module == WASI else 'Z_' + module)
                      for module in imports)))
  print(' private:')
  for module in others:
    print('  Z_%s_instance_t Z_%s;' % (module, module))
  print('  wasm2c::Wasi wasi_{WhatWasiSays()};\n};\n')
  for symbol, body in thunks.items():
    print('void Call_%s(void* it, [[maybe_unused]] const uint64_t* in,\n'
          '    [[maybe_unused]] uint64_t* out) {\n  %s\n}' % (symbol, body))
  for function, body in wasi.items():
    print('uint64_t Wasi_%s(wasm2c::Wasi* wasi, [[maybe_unused]] const uint64_t* '
          'in) {\n  uint64_t out = 0;\n  %s\n  return out;\n}' % (
              function, body))
  print('\n}  // namespace\n')
  print('std::unique_ptr<Imports> NewImports() { '
        'return std::make_unique<Host>(); }\n')
  print('Plan ThePlan() {\n  return {\n      .make = '
        '&wasm2c::NewGuest<Z_%s_instance_t>,\n      .globals = {%s},\n'
        '      .returned = {%s},\n      .wasi = {%s},\n'
        '      .ready = %d,\n      .steps = {\n          %s}};\n}\n' % (
            name, ', '.join('{"%s", %du}' % entry for entry in globals_),
            ', '.join('{"%s.%s", %du}' % (module, field, number % 2**32)
                      for module, field, number in returned.values()),
            ', '.join('{"%s", &Wasi_%s}' % (function, function)
                      for function in wasi), ready,
            ',\n          '.join(steps)))
  print('}  // namespace firsttouch::npm')


if __name__ == '__main__':
  main()
