// Vectors of real numbers, one per lane, with the powers and logarithms that exact directions need.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

template <class Real> struct Lanes;

template <> struct Lanes<float> {
    typedef float Vector __attribute__((vector_size(VECTOR_BYTES)));
    typedef int32_t Bits __attribute__((vector_size(VECTOR_BYTES)));
    static constexpr int mantissa = 23, powers = 7, odd_powers = 5;
    static constexpr float floor = -125, round = 0x1.8p23f, smallest_normal = 0x1p-126f;
};

template <> struct Lanes<double> {
    typedef double Vector __attribute__((vector_size(VECTOR_BYTES)));
    typedef int64_t Bits __attribute__((vector_size(VECTOR_BYTES)));
    static constexpr int mantissa = 52, powers = 13, odd_powers = 11;
    static constexpr double floor = -1021, round = 0x1.8p52, smallest_normal = 0x1p-1022;
};

template <class Real> struct Math {
    using L = Lanes<Real>;
    using V = typename L::Vector;
    using Bits = typename L::Bits;
    static constexpr int lanes = VECTOR_BYTES / sizeof(Real);
    static constexpr Real infinity = std::numeric_limits<Real>::infinity();

    static V all(Real x) { return V{} + x; }
    static V max(V a, V b) { return a > b ? a : b; }
    static V abs(V x) { return (V)((Bits)x & ~(Bits)(-V{})); }
    static V sign(V x) { return x > 0 ? all(1) : (x < 0 ? all(-1) : x); }

    static V sqrt(V x) {
        for (int l = 0; l < lanes; ++l) x[l] = std::sqrt(x[l]);
        return x;
    }

    // 2^x for x <= 0, to a rounding: Taylor's series within half of the nearest whole power; 0 near underflow.
    static V exp2(V x) {
        V inside = x < L::floor ? all(L::floor) : x;
        V shifted = inside + L::round;
        V f = inside - (shifted - L::round);
        V y = all(coefficient(L::powers));
        for (int k = L::powers - 1; k >= 0; --k) y = y * f + coefficient(k);
        V found = (V)((Bits)y + ((Bits)shifted << L::mantissa));
        return x < L::floor ? V{} : found;
    }

    // log2 x for x >= 0, to a rounding: 2 atanh(s) / ln 2 with s = (m - 1) / (m + 1) of a mantissa within sqrt(2) of 1.
    static V log2(V x) {
        constexpr Real lift = Real(0x1p64), ln2 = Real(0.693147180559945309417);
        auto tiny = x < L::smallest_normal;
        Bits low = (Bits)all(Real(0.70710678118654752440));
        Bits i = (Bits)(tiny ? x * lift : x) - low;
        V m = (V)((i & ((typename std::remove_reference<decltype(i[0])>::type(1) << L::mantissa) - 1)) + low);
        V s = (m - 1) / (m + 1), square = s * s, y = all(Real(1) / (2 * L::odd_powers + 1));
        for (int k = L::odd_powers - 1; k >= 0; --k) y = y * square + Real(1) / (2 * k + 1);
        V whole = __builtin_convertvector(i >> L::mantissa, V);
        V found = (tiny ? whole - 64 : whole) + y * s * (2 / ln2);
        // x - x: what is no number stays none.
        return x == 0 ? all(-infinity) : found + (x - x);
    }

    // (ln 2)^k / k!
    static constexpr Real coefficient(int k) {
        double c = 1;
        for (int j = 1; j <= k; ++j) c *= 0.693147180559945309417 / j;
        return Real(c);
    }

    static bool any(Bits mask) {
        bool found = false;
        for (int l = 0; l < lanes; ++l) found |= mask[l] != 0;
        return found;
    }

    static V sum(V x) {
        Real total = 0;
        for (int l = 0; l < lanes; ++l) total += x[l];
        return all(total);
    }

    static V largest(V x) {
        Real top = x[0];
        for (int l = 1; l < lanes; ++l) top = x[l] > top ? x[l] : top;
        return all(top);
    }
};
