// Steps of many small instances by exact directions: what batch_directions.py and three rules of updates.py compute,
// with a few instances in cache for all steps. A lane is a sequence: of as many instances, or of one (`one_instance`).
// One exponential a token: relative to the best of the others, which serves the weights as the logarithms would.
#include <cstddef>
#include <vector>

#include "lanes.h"

enum Rule { NONE, NORMALIZED, ACCELERATED, SIGN };

struct Call {
    // T tokens, `vectors` of sequences in each block; query_dim 0 trains p.
    int64_t vectors, T, d, dv, query_dim, instances, sequences;
    int64_t one_instance, near, train_attention, train_head, rule, steps, count, fresh;
    // In blocks (block, vector, ..., lane); hidden and first may be null, gamma is written where it is fresh.
    const void *keys, *values, *labels, *queries, *hidden, *first;
    void *gamma;
    // Instances last.
    const void *attention_lr, *head_lr, *loss;
    const double *rate_scales;
    void *attention, *head, *attention_momentum, *head_momentum;
    // Of the last step.
    void *attention_direction, *head_direction, *log_attention, *margins;
};

template <class Real> struct Block : Math<Real> {
    using M = Math<Real>;
    using V = typename M::V;
    using M::all, M::exp2, M::log2;
    static constexpr Real log2_e = Real(1.44269504088896340736);
    // Of tokens and sequences that do not count: finite, because infinity times 0 is no number.
    static constexpr Real far = std::numeric_limits<Real>::max() / 8;
    static constexpr Real min_weight_sum = Real(0x1p-40), eps = std::numeric_limits<Real>::epsilon();

    // Weighted tokens so far, in units of 2^top, and half the sum of absolute weights.
    struct Sum {
        V top, size;
        std::vector<V> tokens;
        void clear() {
            top = all(-far / 2), size = V{};
            std::fill(tokens.begin(), tokens.end(), V{});
        }
        // Sets the units to 2^(a larger exponent), and says what the tokens are to be multiplied by.
        V raise(V exponent) {
            V higher = M::max(top, exponent), scale = exp2(top - higher);
            top = higher, size *= scale;
            return scale;
        }
    };

    const Call &c;
    const int64_t block, width;
    const V *keys, *values, *labels, *queries, *hidden, *first;
    V *gamma;
    std::vector<V> attention, head, attention_momentum, head_momentum;
    std::vector<V> target, a, e, s, own, rest, lead, w, part, differences, margins;
    V loss, attention_lr, head_lr, best, anchor, drift, inverse, log_total, log_second;
    Sum pull, careful_pull, pool;

    Block(const Call &call, int64_t at) : c(call), block(at), width(c.d * (c.query_dim ? c.query_dim : 1)) {
        auto of = [&](const void *x, int64_t numbers) {
            return x ? (const V *)x + block * c.vectors * numbers : nullptr;
        };
        keys = of(c.keys, c.T * c.d), values = of(c.values, c.T * c.dv), labels = of(c.labels, 1);
        queries = of(c.queries, c.query_dim), hidden = of(c.hidden, c.T), first = of(c.first, c.T);
        gamma = (V *)of(c.gamma, c.T);
        for (auto *x : {&a, &e, &s, &own, &rest, &lead, &w}) x->resize(c.T);
        target.resize(c.d), part.resize(c.d), margins.resize(c.vectors);
        pull.tokens.resize(width), careful_pull.tokens.resize(width), pool.tokens.resize(c.dv);
        attention = load(c.attention, width), head = load(c.head, c.dv);
        attention_momentum = load(c.attention_momentum, width), head_momentum = load(c.head_momentum, c.dv);
        loss = load(c.loss, 1)[0], attention_lr = load(c.attention_lr, 1)[0], head_lr = load(c.head_lr, 1)[0];
    }

    // --- instances last, from and to ---

    int64_t instance(int l) const { return c.one_instance ? block : block * M::lanes + l; }

    std::vector<V> load(const void *from, int64_t rows) const {
        std::vector<V> found(from ? rows : 0);
        for (size_t r = 0; r < found.size(); ++r)
            for (int l = 0; l < M::lanes; ++l)  // lanes past the last instance repeat it
                found[r][l] = ((const Real *)from)[r * c.instances + std::min(instance(l), c.instances - 1)];
        return found;
    }

    void store(void *to, const V *x, int64_t rows) const {
        const int64_t lanes = c.one_instance ? 1 : std::min<int64_t>(M::lanes, c.instances - block * M::lanes);
        for (int64_t r = 0; to && r < rows; ++r)
            for (int l = 0; l < lanes; ++l) ((Real *)to)[r * c.instances + instance(l)] = x[r][l];
    }

    void store_margins() const {
        if (!c.one_instance) return store(c.margins, margins.data(), c.vectors);
        for (int64_t i = 0; i < c.sequences; ++i)
            ((Real *)c.margins)[i * c.instances + block] = margins[i / M::lanes][i % M::lanes];
    }

    // --- products with the tokens of one vector of sequences ---

    template <int N> static void dots_of(const V *tokens, const V *weight, int64_t d, V *to) {
        V sum[N] = {};
        for (int64_t j = 0; j < d; ++j)
            for (int t = 0; t < N; ++t) sum[t] += tokens[t * d + j] * weight[j];
        for (int t = 0; t < N; ++t) to[t] = sum[t];
    }

    // to_t = sum_j weight_j token_tj; four at a time hide the time of an addition.
    void dots(const V *tokens, const V *weight, int64_t d, V *to) const {
        int64_t t = 0;
        for (; t + 4 <= c.T; t += 4) dots_of<4>(tokens + t * d, weight, d, to + t);
        for (; t < c.T; ++t) dots_of<1>(tokens + t * d, weight, d, to + t);
    }

    template <int N> void add_of(const V *tokens, int64_t d, V scale, V *to) const {
        V sum[N];
        for (int j = 0; j < N; ++j) sum[j] = to[j] * scale;
        for (int64_t t = 0; t < c.T; ++t)
            for (int j = 0; j < N; ++j) sum[j] += w[t] * tokens[t * d + j];
        for (int j = 0; j < N; ++j) to[j] = sum[j];
    }

    // to_j = scale to_j + sum_t w_t token_tj.
    void add(const V *tokens, int64_t d, V scale, V *to) const {
        int64_t j = 0;
        for (; j + 4 <= d; j += 4) add_of<4>(tokens + j, d, scale, to + j);
        for (; j < d; ++j) add_of<1>(tokens + j, d, scale, to + j);
    }

    // --- the direction ---

    V log_slope(V margin) const {
        V x = margin * log2_e, size = M::abs(x);
        V logistic = M::max(x, V{}) + log2(1 + exp2(-size));
        return loss == 0 ? -logistic : (loss == 1 ? -x : V{});
    }

    // Attention of the sequences, centred at the selected token: own is 1 there.
    void attend(int64_t i) {
        const V *q = attention.data();
        if (queries) {
            const V *z = queries + i * c.query_dim;
            for (int64_t j = 0; j < c.d; ++j) {
                target[j] = V{};
                for (int64_t k = 0; k < c.query_dim; ++k) target[j] += attention[j * c.query_dim + k] * z[k];
            }
            q = target.data();
        }
        dots(keys + i * c.T * c.d, q, c.d, a.data());
        V second = all(-far), at = V{};
        best = second;
        for (int64_t t = 0; t < c.T; ++t) {
            if (hidden) a[t] += hidden[i * c.T + t];
            auto higher = a[t] > best;
            at = higher ? all(t) : at;
            second = M::max(higher ? best : a[t], second);
            best = M::max(a[t], best);
        }
        for (int64_t t = 0; t < c.T; ++t) own[t] = at == all(t) ? all(1) : V{}, rest[t] = 1 - own[t];
        if (first) second = leave_out_copies(first + i * c.T);
        weigh(i, second);
    }

    // Copies of the selected token's key pull nowhere either; returns the best score of the others.
    V leave_out_copies(const V *copy) {
        V first_own = V{}, second = all(-far);
        for (int64_t t = 0; t < c.T; ++t) first_own += own[t] * copy[t];
        for (int64_t t = 0; t < c.T; ++t) {
            rest[t] = copy[t] == first_own ? V{} : rest[t];
            second = M::max(rest[t] == 1 ? a[t] : second, second);
        }
        return second;
    }

    // Scores become logarithms of attention; e is relative to the best of the rest, which no norm underflows.
    void weigh(int64_t i, V second) {
        const V *g = gamma + i * c.T;
        V total = anchor = drift = V{};
        log_second = (second - best) * log2_e;
        const V ratio = exp2(log_second);
        for (int64_t t = 0; t < c.T; ++t) {
            V below = (a[t] - second) * log2_e;
            e[t] = exp2(below > 0 ? V{} : below) * rest[t];
            s[t] = e[t] * ratio + (1 - rest[t]);
            total += s[t];
            anchor += own[t] * g[t];
        }
        for (int64_t t = 0; t < c.T; ++t) {
            lead[t] = g[t] - anchor;
            if (hidden) lead[t] = hidden[i * c.T + t] < 0 ? V{} : lead[t];
            drift += s[t] * lead[t];
        }
        drift /= total, log_total = log2(total), inverse = 1 / total;
        log_second -= log_total;
    }

    // Weights by the logarithms of all factors, over 2^(what is returned): see _logarithms in batch_directions.py.
    V logarithms(V slope) {
        V top = all(-M::infinity), sum = V{}, largest = all(-far);
        for (int64_t t = 0; t < c.T; ++t) {
            w[t] = lead[t] - drift;
            lead[t] = M::abs(lead[t]) <= 8 * eps * M::abs(anchor) ? V{} : lead[t];
            a[t] = (a[t] - best) * log2_e - log_total;
            e[t] = a[t] + log2(M::abs(lead[t]));
            top = M::max(e[t], top);
        }
        top = top == -M::infinity ? V{} : top;
        for (int64_t t = 0; t < c.T; ++t) sum += exp2(e[t] - top) * M::sign(lead[t]);
        const V log_size = top + log2(M::abs(sum));
        for (int64_t t = 0; t < c.T; ++t) {
            e[t] = a[t] + slope + (lead[t] == 0 ? log_size : log2(M::abs(w[t])));
            largest = M::max(rest[t] == 1 ? e[t] : largest, largest);
        }
        for (int64_t t = 0; t < c.T; ++t) {
            V below = e[t] - largest;
            w[t] = (lead[t] == 0 ? -M::sign(sum) : M::sign(w[t])) * exp2(below > 0 ? V{} : below) * rest[t];
        }
        return largest;
    }

    // Adds the sequences' tokens to the pull on the attention.
    void add_pull(int64_t i, V slope, bool careful, Sum &to) {
        V top = log_second + slope, sum = V{}, size = V{};
        if (careful) top = logarithms(slope);
        const V scale = to.raise(top), unit = exp2(top - to.top);
        for (int64_t t = 0; t < c.T; ++t) {
            w[t] = careful ? w[t] * unit : e[t] * (lead[t] - drift) * unit;
            size += M::abs(w[t]);
            sum += w[t];
        }
        // All tokens' weights, the selected one's too, halved: whichever of tied tokens that is.
        if (first) size = joined_size(first + i * c.T);
        to.size += Real(0.5) * (size + M::abs(sum));
        if (c.near) return add_differences(i, scale, to);
        // The selected token takes minus the weights of the others.
        for (int64_t t = 0; t < c.T; ++t) w[t] -= own[t] * sum;
        add_to(i, keys + i * c.T * c.d, scale, to);
    }

    // The sum of absolute weights, of which those of a key with several values are added up.
    V joined_size(const V *copy) {
        V size = V{};
        for (int64_t t = 0; t < c.T; ++t) {
            V joined = V{};
            for (int64_t u = 0; u < c.T; ++u) joined += copy[u] == all(t) ? w[u] : V{};
            size += M::abs(joined);
        }
        return size;
    }

    // Of keys that are near the differences are taken first: see core/exact.py.
    void add_differences(int64_t i, V scale, Sum &to) {
        const V *token = keys + i * c.T * c.d;
        differences.assign(token, token + c.T * c.d);
        for (int64_t j = 0; j < c.d; ++j) {
            V selected = V{};
            for (int64_t t = 0; t < c.T; ++t) selected += own[t] * token[t * c.d + j];
            for (int64_t t = 0; t < c.T; ++t) differences[t * c.d + j] -= selected;
        }
        add_to(i, differences.data(), scale, to);
    }

    void add_to(int64_t i, const V *tokens, V scale, Sum &to) {
        if (!queries) return add(tokens, c.d, scale, to.tokens.data());
        add(tokens, c.d, V{}, part.data());
        const V *z = queries + i * c.query_dim;
        for (int64_t j = 0; j < c.d; ++j)
            for (int64_t k = 0; k < c.query_dim; ++k) {
                V &g = to.tokens[j * c.query_dim + k];
                g = g * scale + part[j] * z[k];
            }
    }

    // Adds the sequences' pooled values, by the slopes of their losses.
    void add_pooled(int64_t i, V slope) {
        V scale = pool.raise(slope), u = exp2(slope - pool.top);
        pool.size += u;
        for (int64_t t = 0; t < c.T; ++t) w[t] = s[t] * (u * labels[i] * inverse);
        add(values + i * c.T * c.dv, c.dv, scale, pool.tokens.data());
    }

    void find_gamma(int64_t i) {
        dots(values + i * c.T * c.dv, head.data(), c.dv, gamma + i * c.T);
        for (int64_t t = 0; t < c.T; ++t) gamma[i * c.T + t] *= labels[i];
    }

    // Lanes that are sequences of one instance, added up.
    void join(Sum &x) const {
        if (!c.one_instance) return;
        V scale = x.raise(M::largest(x.top));
        x.size = M::sum(x.size);
        for (V &g : x.tokens) g = M::sum(g * scale);
    }

    void directions() {
        pull.clear(), pool.clear();
        for (int64_t i = 0; i < c.vectors; ++i) {
            if (c.train_head) find_gamma(i);
            attend(i);
            margins[i] = drift + anchor;
            V slope = labels[i] == 0 ? all(-far) : log_slope(margins[i]);
            add_pull(i, slope, false, pull);
            if (c.train_head) add_pooled(i, slope);
        }
        join(pull), join(pool);
        auto enough = pull.size > min_weight_sum;
        if (M::any(~enough)) {
            careful_pull.clear();
            for (int64_t i = 0; i < c.vectors; ++i) {
                attend(i);
                add_pull(i, labels[i] == 0 ? all(-far) : log_slope(margins[i]), true, careful_pull);
            }
            join(careful_pull);
            pull.top = enough ? pull.top : careful_pull.top;
            pull.size = enough ? pull.size : careful_pull.size;
            for (int64_t j = 0; j < width; ++j)
                pull.tokens[j] = enough ? pull.tokens[j] : careful_pull.tokens[j];
        }
        divide(pull), divide(pool);
    }

    static void divide(Sum &x) {
        V size = M::max(x.size, all(std::numeric_limits<Real>::min()));
        for (V &g : x.tokens) g /= size;
    }

    // --- the rules ---

    void move(std::vector<V> &weight, std::vector<V> &momentum, const Sum &direction, V rate, int64_t count) const {
        const V *g = direction.tokens.data();
        const size_t size = weight.size();
        if (c.rule == NORMALIZED) {
            V square = V{};
            for (size_t j = 0; j < size; ++j) square += g[j] * g[j];
            V length = M::sqrt(square), factor = length > 0 ? rate / length : square;
            for (size_t j = 0; j < size; ++j) weight[j] += g[j] * factor;
        } else if (c.rule == ACCELERATED) {
            const Real kept = Real(double(count) / double(count + 1));
            for (size_t j = 0; j < size; ++j) {
                momentum[j] = (momentum[j] - g[j]) * kept;
                weight[j] -= (momentum[j] - g[j]) * rate;
            }
        } else if (c.rule == SIGN) {
            for (size_t j = 0; j < size; ++j) weight[j] += M::sign(g[j]) * rate;
        }
    }

    void run() {
        if (c.fresh && !c.train_head)
            for (int64_t i = 0; i < c.vectors; ++i) find_gamma(i);
        for (int64_t s = 0; s < c.steps; ++s) {
            directions();
            const Real scale = Real(c.rate_scales[s]);
            if (c.train_attention) move(attention, attention_momentum, pull, attention_lr * scale, c.count + s);
            if (c.train_head) move(head, head_momentum, pool, head_lr * scale, c.count + s);
        }
        if (c.train_attention) store(c.attention, attention.data(), width);
        if (c.train_head) store(c.head, head.data(), c.dv);
        store(c.attention_momentum, attention_momentum.data(), attention_momentum.size());
        store(c.head_momentum, head_momentum.data(), head_momentum.size());
        store(c.attention_direction, pull.tokens.data(), width);
        if (c.train_head) store(c.head_direction, pool.tokens.data(), c.dv);
        V log_attention = (pull.top + log2(pull.size)) / log2_e;
        store(c.log_attention, &log_attention, 1);
        store_margins();
    }
};

extern "C" int lanes_of_float() { return Math<float>::lanes; }
extern "C" int lanes_of_double() { return Math<double>::lanes; }

extern "C" void run_float(const Call *call, int64_t blocks) {
    for (int64_t block = 0; block < blocks; ++block) Block<float>(*call, block).run();
}

extern "C" void run_double(const Call *call, int64_t blocks) {
    for (int64_t block = 0; block < blocks; ++block) Block<double>(*call, block).run();
}
