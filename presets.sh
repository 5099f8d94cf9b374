# Sourced by run_*.sh: hyperparameters of CKD for each task, the checks of a script's variables and arguments, and the
# function that carries a command out, or with DRY_RUN=1 prints it.

# names FILE TABLE: the keys of a table of the code, one a line of it, so that a new one is known here too
names() { sed -n "/^$2 = {/,/^}/s/^    \"\([a-z0-9_]*\)\": .*/\1/p" "$1"; }

ALL_TASKS=$(echo $(names data.py TASKS | grep -v -x -e ax -e 'squad.*' -e custom))  # those of run_glue.sh
ALL_METHODS=$(echo finetune $(names losses.py PRESETS))

# check VARIABLE NAMES [REGEX]: ends the script, status 2, unless the variable holds words and each is one of the names;
# with a regex, unless each matches it, and NAMES says what does
check() {
    local values=${!1} word known=${3:-${2// /|}}
    [[ $values =~ [^[:space:]] ]] || { echo "$(basename "$0"): error: $1 is blank: use $2" >&2; exit 2; }
    for word in $values; do
        [[ $word =~ ^($known)$ ]] || { echo "$(basename "$0"): error: $1 names $word: use $2" >&2; exit 2; }
    done
}

# run COMMAND...: carries it out; with DRY_RUN prints it as one line, quoted so that it can be pasted
run() {
    local line
    if [ -z "${DRY_RUN:-}" ]; then "$@"; else printf -v line '%q ' "$@" && printf '%s\n' "${line% }"; fi
}

# Options of distilling, which commands without --teacher refuse
DISTILLATION="--terms --hard_weight --temperature --stages --layer_map --wr_layer_map --ltr_layer_map --no_embeddings \
--window --distance --pair_criterion --triple_criterion --cache_teacher"

# split_options ARGUMENT...: options of distilling with their values go into the array distilling, others into others
split_options() {
    local word to=others
    others=() distilling=()
    for word in "$@"; do
        if [[ $word == --* ]]; then
            if [[ " $DISTILLATION " == *" ${word%%=*} "* ]]; then to=distilling; else to=others; fi
        fi
        if [ "$to" = distilling ]; then distilling+=("$word"); else others+=("$word"); fi
    done
}

# check_options ARGUMENT...: ends the script, status 2, at an option that must differ between its commands
check_options() {
    local word
    for word in "$@"; do
        case ${word%%=*} in
            --task | --teacher | --student | --terms | --run_name | --seed | --output_dir)
                echo "$(basename "$0"): error: ${word%%=*} would be the same in all commands: set the script's" \
                    "variables instead, see its top" >&2
                exit 2 ;;
        esac
    done
}

# preset TASK: temperature, pair weight, triple weight, learning rate, epochs. Published for a 6-layer student
# (arXiv:2109.08359), where logits are not scaled by temperature^2.
preset() {
    case $1 in
        cola) echo 3 1 10 5e-5 4 ;;
        sst2) echo 4 100 1000 4e-5 4 ;;
        rte) echo 3 1 10 5e-5 6 ;;
        qnli) echo 3 10 1 4e-5 4 ;;
        mrpc) echo 4 1 1 3e-5 4 ;;
        stsb) echo 1 0.1 0.1 5e-5 4 ;;
        mnli) echo 4 100 1 4e-5 4 ;;
        qqp) echo 2 10 10 5e-5 4 ;;
        squad | squad_v2) echo 1 1 10 3e-5 3 ;;  # not published: plain ckd, as run_squad.sh has it
        conll2003 | wnut17 | conll2000 | goemotions) echo 1 1 10 5e-5 4 ;;  # not published; CoLA's 3 was worse
        scitldr | cnn_dailymail) echo 1 1 10 5e-5 4 ;;  # not published
        *) echo 3 1 10 5e-5 4 ;;  # wnli: not published, as cola
    esac
}

# ckd_terms TEMPERATURE PAIR TRIPLE: --terms with the weights times temperature^2, as logits are scaled by it here
ckd_terms() {
    awk -v t="$1" -v p="$2" -v a="$3" 'BEGIN { printf "ckd wr_pair=%g ltr_pair=%g wr_triple=%g ltr_triple=%g\n",
        p * t * t, p * t * t, a * t * t, a * t * t }'
}

# method_options METHOD TEMPERATURE TERMS: how a method is distilled. Temperature and terms are those of ckd, the
# temperature also that of kd, which is ckd's logits alone; the other presets have their own
method_options() {
    case $1 in
        ckd) echo --terms $3 --temperature "$2" ;;
        kd) echo --terms kd --temperature "$2" ;;
        finetune) ;;
        *) echo --terms "$1" ;;
    esac
}

# train_teacher TASK OPTIONS...: $RUNS/TASK/teacher/seed1, which the students of that task learn from
train_teacher() {
    local task=$1
    shift
    run $LAUNCH distill_finetune.py --task "$task" ${DATA_DIR:+--data_dir "$DATA_DIR"} --student "$TEACHER" \
        --run_name teacher --seed 1 --learning_rate "$TEACHER_LEARNING_RATE" --num_train_epochs "$TEACHER_EPOCHS" \
        --output_dir "$RUNS/$task/teacher/seed1" "$@"
}

# check_recipes METHOD...: ends the script, status 2, unless the file $RECIPES has a line for each method and no variable
# names what stands there
check_recipes() {
    local method variable word
    for word in ${others[@]+"${others[@]}"} ${distilling[@]+"${distilling[@]}"}; do
        [[ " --learning_rate $DISTILLATION " != *" ${word%%=*} "* || $word == --cache_teacher ]] || {
            echo "$(basename "$0"): error: ${word%%=*} and RECIPES both say how a student is trained: leave one out" >&2
            exit 2; }
    done
    for variable in TERMS LEARNING_RATE; do
        [ -z "${!variable:-}" ] || { echo "$(basename "$0"): error: $variable and RECIPES both say how a student is" \
            "trained: set one of them" >&2; exit 2; }
    done
    [ -f "$RECIPES" ] && [ -r "$RECIPES" ] || { echo "$(basename "$0"): error: RECIPES names $RECIPES, which cannot be read" >&2; exit 2; }
    for method in "$@"; do
        [ -n "$(recipe_of "$method")" ] || { echo "$(basename "$0"): error: $RECIPES has no options for $method: put it into" \
            "METHODS of run_sweep.sh, or leave it out of METHODS" >&2; exit 2; }
    done
}

# recipe_of METHOD: its options in the file $RECIPES, which holds a line "METHOD OPTION..." for each method; what follows
# a # is left out, and so are the marks that Windows leaves
recipe_of() {
    awk -v method="$1" 'NR == 1 { sub(/^\357\273\277/, "") } { sub(/\r$/, ""); sub(/#.*/, "") }
        $1 == method && NF > 1 { sub(/^[ \t]*[^ \t]+[ \t]+/, ""); print; exit }' < "$RECIPES"
}
